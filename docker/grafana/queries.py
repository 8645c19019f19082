"""What the dashboards' queries have in common."""

__all__ = ["ASKED", "AT", "INSTANCE", "MODEL", "OF", "RATE", "quantile"]

AT = 'instance=~"$instance"'
OF = f'{AT}, model=~"$model"'
ASKED = f'{AT}, route=~"/predict.*|/v2/.*/infer"'
"""Requests for predictions, and none for health or pages."""
RATE = "$__rate_interval"
INSTANCE = ("instance", "label_values(mfdan_build_info, instance)")
MODEL = ("model", "label_values(mfdan_model_info, name)")


def quantile(share: float, buckets: str, by: str = "") -> str:
    """Ask for a quantile of a histogram, over `by`'s values apart."""
    kept = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({kept}) (rate({buckets}[{RATE}])))"
