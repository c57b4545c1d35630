"""Count the published bases for `imageprompt plan`: writes counted.json beside its code.

python dev/counted_bases.py [NAME ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from imageprompt.deploy.plan import measure
from imageprompt.deploy.plan.bases import BASES

FILE = Path(measure.__file__).with_name("counted.json")


def main() -> None:
    """Count those named, or all."""
    counted = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in sys.argv[1:] or BASES:
        counted[name] = measure.count_base(BASES[name])
        print(f"{name}: {counted[name]['denoiser']['parameters']:,}", flush=True)
    FILE.write_text(json.dumps(counted, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
