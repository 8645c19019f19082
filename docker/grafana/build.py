"""Write the dashboards' JSON: `python docker/grafana/build.py [folder]`, or `make dashboards`.

A title is a question or a claim, a description says what to do about what is seen. Alerts and
their rules are in docker/prometheus/rules; what each means stands in docs/operations.md.
"""

import json
import sys
from pathlib import Path

from gpu_dashboard import gpu
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from model_dashboard import model
from service_dashboard import service

HERE = Path(__file__).parent


def main() -> None:
    """Write every dashboard into the folder named, or beside this file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "dashboards"
    for name, dashboard in (("service", service()), ("model", model()), ("gpu", gpu())):
        text_of = json.dumps(dashboard, cls=JSONEncoder, indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(f"{text_of}\n")


if __name__ == "__main__":
    main()
