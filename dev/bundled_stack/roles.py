"""Measure which sites of the exported base carry style or layout; write it into its config."""

from __future__ import annotations

import json
from pathlib import Path

from imageprompt.core import bundled
from imageprompt.core.atomic_files import write_atomically
from imageprompt.demo.datasets import draw_references
from imageprompt.evaluation.probing import probe
from imageprompt.hosts.contract import ROLES_KEY


def state_roles(folder: Path, count: int) -> dict[str, list[str]]:
    """Write the roles into the denoiser's config, which presets and `scale={"style": 1}` follow.

    If the probe finds none, nothing is written, and the position of a site decides its role.
    """
    drawn = draw_references(count)
    result = probe(
        drawn.pictures,
        base=folder,
        adapter=bundled.DEFAULT_ADAPTER,
        prompt=drawn.texts,
        steps=bundled.STEPS,
        guidance_scale=bundled.GUIDANCE,
        batch_size=16,
    )
    if result.roles:
        denoiser = "transformer" if (folder / "transformer").is_dir() else "unet"
        path = folder / denoiser / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | {ROLES_KEY: result.roles}
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")
    return result.roles
