"""What a run leaves: one self-contained HTML page, and the same figures in the terminal and as JSON."""

from audiolora.files import write_json, write_text
from audiolora.report.page import Snippet
from audiolora.report.speech import ClipResult, SpeechReport, speech_usage, write_report
from audiolora.report.table import print_summary, summary_table

__all__ = [
    "ClipResult",
    "Snippet",
    "SpeechReport",
    "print_summary",
    "speech_usage",
    "summary_table",
    "write_json",
    "write_report",
    "write_text",
]
