"""What a process has loaded that has counted a base."""

from imageprompt.core import bundled
from imageprompt.deploy.plan.open import counted

counted(bundled.folder())
