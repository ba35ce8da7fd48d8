"""What a run leaves on disk: values, pictures, and one page about several runs."""

from avalanche_magd.reporting.report import write_report
from avalanche_magd.reporting.run_logger import RunLogger

__all__ = ["RunLogger", "write_report"]
