"""The leaderboard site: static HTML pages that need no server, network or script."""

from robustbench_vlm.leaderboard.site.pages import site_files, write_site
from robustbench_vlm.leaderboard.site.server import open_server, serve
from robustbench_vlm.leaderboard.site.written_pages import EntryFiles

__all__ = ["EntryFiles", "open_server", "serve", "site_files", "write_site"]
