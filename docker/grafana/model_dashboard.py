"""The dashboard of the models: what is answered, and has what is sent changed."""

from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import Row, frame, heat, lines, number, text
from queries import AT, INSTANCE, MODEL, OF, RATE, quantile

__all__ = ["model"]


def model() -> Dashboard:
    """Show what is answered, and whether what is sent has changed."""
    return frame(
        "mfdan-model",
        "mfdan: model",
        "What is answered, and has what is sent changed? The measured scores of a model hold for "
        "pictures like those that it was measured on.",
        [INSTANCE, MODEL],
        [_mix(), _confidence(), _pictures(), _clips()],
    )


def _mix() -> Row:
    share = 'mfdan:answer_share:ratio6h{model=~"$model"}'
    return "Are the answers spread as they were?", [
        number(
            "How far from the reference?",
            "Share of the last six hours' answers that would have to differ to fit the reference "
            "that came with the model: 0 to 100 %. Above 30 % for an hour: MfdanMixDrift. No value "
            "without answers, or for a model without a reference.",
            "percentunit",
            ('max(mfdan:answer_drift:ratio6h{model=~"$model"})', "drift"),
            red_from=0.3,
            width=6,
            without="nothing to compare",
        ),
        number(
            "What share abstains?",
            "Of the faces answered in the last six hours. 'Why does it abstain?' says for what.",
            "percentunit",
            (f'max({share[:-1]}, answer="abstained"}})', "abstained"),
            width=6,
            without="no answers",
        ),
        number(
            "What share has no face?",
            "Of the predictions of the last hour. Twice the usual: MfdanNoFaceDoubled.",
            "percentunit",
            ("max(mfdan:no_face:ratio1h)", "no face"),
            width=6,
            without="no predictions",
        ),
        text(
            "Which models answer?",
            "Name, version, and where it runs.",
            (
                f'count by (name, version, provider) (mfdan_model_info{{{AT}, name=~"$model"}})',
                "{{name}} {{version}}, {{provider}}",
            ),
            width=6,
        ),
        lines(
            "How are the answers spread, and how should they be?",
            "Shares of the last six hours, and dashed those of the reference. Where they part, "
            "look at the callers first: others, another camera, other light.",
            "percentunit",
            (share, "{{answer}}"),
            (
                'avg by (model, answer) (mfdan_reference_ratio{model=~"$model"})',
                "reference: {{answer}}",
            ),
            width=12,
            most=1,
        ),
        lines(
            "How far from the reference, over time?",
            "A step is a caller who came or changed; a slow climb a camera or its light.",
            "percentunit",
            ('mfdan:answer_drift:ratio6h{model=~"$model"}', "{{model}}"),
            width=12,
            most=1,
        ),
        lines(
            "Which labels stand?",
            "Answers a second by class. One class alone where there were several: look at what "
            "is sent.",
            "ops",
            (
                f"sum by (model, label) (rate(mfdan_labels_total{{{OF}}}[{RATE}]))",
                "{{label}} {{model}}",
            ),
            stacked=True,
            width=12,
        ),
        lines(
            "Why does it abstain?",
            "no_movement: still pictures. low_confidence: faces unlike those of the training. The "
            "others are about the pictures: light, sharpness, size, pose.",
            "ops",
            (
                f"sum by (reason) (rate(mfdan_abstentions_total{{{OF}}}[{RATE}]))",
                "{{reason}}",
            ),
            stacked=True,
            width=12,
        ),
    ]


def _confidence() -> Row:
    buckets = f"mfdan_confidence_ratio_bucket{{{OF}}}"
    return "How sure is it?", [
        heat(
            "Probability of the label",
            "Of answers that stand. A cloud that sinks is a change of what is sent, whatever the "
            "labels are.",
            "percentunit",
            buckets,
            width=12,
        ),
        lines(
            "The median, and the doubtful tenth",
            "Compare with last week's. A fall of the median by .1 is worth a look at some pictures "
            "with a caller who may show them.",
            "percentunit",
            *((quantile(q, buckets, "model"), f"p{q * 100:.0f} {{{{model}}}}") for q in (0.1, 0.5)),
            width=12,
            most=1,
        ),
    ]


def _pictures() -> Row:
    none = f'sum(rate(mfdan_predictions_total{{{AT}, faces="none"}}[{RATE}]))'
    every = f"sum(rate(mfdan_predictions_total{{{AT}}}[{RATE}]))"
    return "Has what is sent changed?", [
        heat(
            "How far do faces move?",
            "Pixels of the aligned crop: what the gate reads. A micro-expression moves a "
            "fraction of a pixel to some; much more is talking, or a frame rate that fell.",
            "short",
            f"mfdan_motion_moved_pixels_bucket{{{OF}}}",
        ),
        heat(
            "How far does the part that moves most go?",
            "95th percentile of a face's motion, pixels of the aligned crop.",
            "short",
            f"mfdan_motion_p95_pixels_bucket{{{OF}}}",
        ),
        lines(
            "Does it find faces?",
            "Share of predictions without one: now, in the last hour, and dashed what this hour "
            "had over the last seven days. Twice that: MfdanNoFaceDoubled.",
            "percentunit",
            (f"{none} / ({every} > 0)", "now"),
            ("mfdan:no_face:ratio1h", "last hour"),
            ("mfdan:no_face:usual_ratio1h", "reference: usual"),
            most=1,
        ),
    ]


def _clips() -> Row:
    cost = (
        f'sum(rate(mfdan_stage_duration_seconds_sum{{{AT}, kind="clip", stage="total"}}[{RATE}]))'
        f" / (sum(rate(mfdan_clip_seconds_total{{{AT}}}[{RATE}])) > 0)"
    )
    return "What are the clips like?", [
        lines(
            "Which containers come?",
            "Clips answered a second. A new one is a new camera or caller.",
            "ops",
            (f"sum by (container) (rate(mfdan_clips_total{{{AT}}}[{RATE}]))", "{{container}}"),
        ),
        lines(
            "What is found in them?",
            "Intervals a second: spotted, given by the caller, or the middle frame when nothing "
            "was spotted. Much of the last: clips without expressions, or too slow cameras.",
            "ops",
            (f"sum by (source) (rate(mfdan_candidates_total{{{AT}}}[{RATE}]))", "{{source}}"),
        ),
        lines(
            "What does a second of video cost?",
            "Seconds from upload to answer for each second of video. It grows with pixels, frame "
            "rate and faces, and while clips wait for workers.",
            "s",
            (cost, "seconds"),
        ),
    ]
