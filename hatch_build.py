"""Build hook: an editable install sees the top-level folders as `isobit.<folder>` through relative links."""

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditableLinks(BuildHookInterface):
    """Links each of the wheel's `sources` below the dev-mode folder; does nothing when the build is not editable."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            return
        for folder, installed_as in self.build_config.target_config["sources"].items():
            link = Path(self.root, *self.build_config.dev_mode_dirs, installed_as)
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink():
                link.unlink()
            link.symlink_to(os.path.relpath(Path(self.root, folder), link.parent), target_is_directory=True)
