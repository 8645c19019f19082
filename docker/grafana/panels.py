"""The few kinds of panels that the dashboards are made of, and the frame around them."""

from collections.abc import Sequence
from string import ascii_uppercase

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    HeatmapCellLayout,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import Dashboard as DashboardModel
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DynamicConfigValue,
    Panel,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = ["Query", "Row", "frame", "heat", "lines", "number", "states", "text"]

SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
"""As docker/grafana/provisioning/datasources names it."""
REFERENCE = "reference"
"""What a legend begins with where a line is not measured: a promise, a limit, a usual value."""
WIDTH = 24
"""Columns of a dashboard."""

Query = tuple[str, str]
"""A PromQL expression, and the legend of what it yields."""
Row = tuple[str, Sequence[Builder[Panel]]]
"""A heading, and the panels below it."""


def lines(  # noqa: PLR0913 - a panel is as much as this
    title: str,
    about: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    stacked: bool = False,
    most: float | None = None,
) -> timeseries.Panel:
    """Make lines over time, from 0. Legends that begin with REFERENCE are dashed.

    `unit` is one of Grafana's names; `about` says what to do about what is seen; `most` is the
    end of the axis, where it has one.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .targets(_targets(queries))
        .unit(unit)
        .min(0)
        .span(width)
        .height(8)
        .fill_opacity(30 if stacked else 5)
        .show_points(VisibilityMode.AUTO)
        .legend(_legend())
        .tooltip(
            common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        )
        .override_by_regexp(f"/^{REFERENCE}/", _dashed())
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    return panel if most is None else panel.max(most)


def heat(title: str, about: str, unit: str, buckets: str, *, width: int = 8) -> heatmap.Panel:
    """Make a heat map of a histogram: time against value, coloured by how many.

    `buckets` is a selector's name and labels without the brackets' end: what is shown is how many
    came into each bucket.
    """
    query = f"sum by (le) (increase({buckets}[$__rate_interval]))"
    return (
        heatmap.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .with_target(_target("A", query, "{{le}}").range().format(PromQueryFormat.HEATMAP))
        .span(width)
        .height(8)
        .calculate(calculate=False)
        .rows_frame(heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.AUTO))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_values(heatmap.CellValues().unit("short").decimals(0))
        .cell_gap(1)
        # An empty bucket is background, so that the few that came stand out.
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .mode(TooltipDisplayMode.SINGLE)
        .show_legend()
    )


def number(  # noqa: PLR0913 - a panel is as much as this
    title: str,
    about: str,
    unit: str,
    query: Query,
    *,
    width: int = 4,
    red_from: float | None = None,
    red_below: float | None = None,
    without: str = "no requests",
) -> stat.Panel:
    """Make the present value, large; red on the wrong side of a limit.

    `without` is what it shows where there is no value now, whatever there was before.
    """
    return (
        _present(title, about, query, width)
        .unit(unit)
        .no_value(without)
        .color_mode(BigValueColorMode.VALUE)
        .thresholds(_limits(red_from, red_below))
    )


def text(title: str, about: str, query: Query, *, width: int = 8) -> stat.Panel:
    """Make a list of what there is: the query's legends, whatever their values are."""
    return (
        _present(title, about, query, width)
        .text_mode(BigValueTextMode.NAME)
        .color_mode(BigValueColorMode.NONE)
    )


def states(title: str, about: str, *queries: Query, width: int = 12) -> statetimeline.Panel:
    """Make bars over time of what is 0 or 1: `no`, grey, or `yes`, coloured."""
    said = {
        "0": ValueMappingResult(text="no", color="#8888884d", index=0),
        "1": ValueMappingResult(text="yes", color="blue", index=1),
    }
    return (
        statetimeline.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .targets(_targets(queries))
        .mappings([ValueMap(options=said)])
        .span(width)
        .height(8)
        .show_value(VisibilityMode.NEVER)
        .row_height(0.8)
        .legend(_key())
    )


def frame(
    uid: str, title: str, about: str, variables: Sequence[Query], rows: Sequence[Row]
) -> DashboardModel:
    """Put rows of panels into a dashboard. `variables`: a name, and the query for its values.

    Raises: ValueError for a row whose panels do not fill its width.
    """
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["mfdan"])
        .readonly()
        .timezone("browser")
        .time("now-30m", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(_siblings())
    )
    for name, values in variables:
        made.with_variable(_variable(name, values))
    for heading, panels in rows:
        made.with_row(dashboard.Row(heading))
        _check_width(heading, panels)
        for panel in panels:
            made.with_panel(panel)
    built = made.build()
    _drop_intervals(built)
    for place, panel_or_row in enumerate(built.panels or [], start=1):
        panel_or_row.id_val = place
    return built


def _present(title: str, about: str, query: Query, width: int) -> stat.Panel:
    return (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        # Over a time the last value there was would outlive what it was of.
        .with_target(_target("A", *query).instant())
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(BigValueGraphMode.NONE)
        .span(width)
        .height(4)
    )


def _targets(queries: Sequence[Query]) -> list[Builder[Dataquery]]:
    return [
        _target(ref, *query).range() for ref, query in zip(ascii_uppercase, queries, strict=False)
    ]


def _target(ref: str, expression: str, legend: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref)
    return query.datasource(SOURCE)


def _legend() -> common.VizLegendOptions:
    return _key().calcs(["lastNotNull"])


def _key() -> common.VizLegendOptions:
    listed = common.VizLegendOptions().show_legend(show_legend=True).calcs([])
    return listed.display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)


def _dashed() -> list[DynamicConfigValue]:
    return [
        DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 8]}),
        DynamicConfigValue(id_val="custom.fillOpacity", value=0),
        DynamicConfigValue(id_val="custom.stacking", value={"mode": "none"}),
    ]


def _limits(red_from: float | None, red_below: float | None) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value=None, color="text")]
    if red_from is not None:
        steps = [Threshold(value=None, color="green"), Threshold(value=red_from, color="red")]
    if red_below is not None:
        steps = [Threshold(value=None, color="red"), Threshold(value=red_below, color="green")]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _siblings() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("mfdan").type(DashboardLinkType.DASHBOARDS).tags(["mfdan"])
    return link.keep_time(keep_time=True).include_vars(include_vars=True)


def _variable(name: str, values: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name)
        .datasource(SOURCE)
        .query(values)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _drop_intervals(built: DashboardModel) -> None:
    """Take out what the builders set for every variable and Grafana knows of intervals only."""
    for variable in (built.templating and built.templating.list_val) or []:
        variable.auto = variable.auto_count = variable.auto_min = None


def _check_width(heading: str, panels: Sequence[Builder[Panel]]) -> None:
    column = 0
    for panel in panels:
        place = panel.build().grid_pos
        column += place.w if place else 0
        if column > WIDTH:
            raise ValueError(f"{heading}: a panel reaches beyond column {WIDTH}")
        column %= WIDTH
    if column:
        raise ValueError(f"{heading}: the last line of panels ends at column {column}")
