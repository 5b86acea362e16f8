"""One HTML page of a run, self-contained."""

from decar.report.folder import write_environment
from decar.report.page import render, write_cluster_page, write_report
from decar.report.run import FILE_NAME, RunFiles, gather

__all__ = ["FILE_NAME", "RunFiles", "gather", "render", "write_cluster_page", "write_environment", "write_report"]
