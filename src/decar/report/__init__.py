"""One HTML page of a run, self-contained."""

from decar.report.folder import write_environment
from decar.report.page import FILE_NAME, RunFiles, gather, render, write_cluster_page, write_report

__all__ = ["FILE_NAME", "RunFiles", "gather", "render", "write_cluster_page", "write_environment", "write_report"]
