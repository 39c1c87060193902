"""Reports of runs: one self-contained HTML page, and tables for the terminal."""

from prism_cli.report.page import write_report
from prism_cli.report.summary_table import summary_table

__all__ = ["summary_table", "write_report"]
