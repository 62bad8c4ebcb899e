"""The report of a run folder."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from longthought.cli.rehearsal import rehearse
from longthought.core.errors import LongthoughtError
from longthought.evaluation.from_run import report_data
from longthought.evaluation.report import write_report
from longthought.evaluation.report_data import ReportData
from longthought.recipes.catalogue import Recipe, find
from longthought.runs.files import plain_errors
from longthought.runs.record import Record
from longthought.runs.settings import from_dict

_warn = logging.getLogger(__name__).warning


def write(record: Record, file: Path, recipe: Recipe | None = None) -> ReportData:
    """Write ``report.html`` for a run in any state. ``recipe`` is found by the name in the record unless given.

    Raises RunError when the file cannot be written.
    """
    data = report_data(record)
    if data.transcripts or (data.road is not None and data.road.asked):
        data = _marked(data, record, recipe)
    with plain_errors(file):
        write_report(data, file)
    return data


def _marked(data: ReportData, record: Record, recipe: Recipe | None) -> ReportData:
    """With the words of the recipe by which an attempt is rejected."""
    try:
        known = recipe or find(record.recipe)
        words = rehearse(known, from_dict(known.settings, record.settings)).testing().lexicon.rejections
    except LongthoughtError as error:
        _warn(f"rejected attempts are not marked in the transcripts: {error}")
        return data
    return replace(data, rejection_words=words)
