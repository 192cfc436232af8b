"""Names of the judges that read in this process."""

from __future__ import annotations

LOCAL, BANDIT = "local", "bandit"
