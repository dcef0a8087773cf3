"""Label efficiency: trains, scores and draws each combination (cell) of label fraction, seed and initialisation.

Each cell has a separate folder. It is finished if its result file exists; an interrupted cell resumes from its newest
checkpoint. Nothing is selected on the frames a cell is scored on: the length of training is fixed and the last weights
are used.
"""

import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import torch

from ...evaluation.comparison import Description, build_results
from ...evaluation.results import EvaluationResults, write_results
from ...progress import Progress
from ..evaluating.reference_models import MONAI_UNET, ReferenceUNet, monai_unet
from ..evaluating.scoring import FrameScorer
from ..finetuning.rows import LabelledRows, TaskData, choose_fraction, load_task_data
from ..finetuning.run import MAE, SCRATCH, FinetuneRun, check_stored_run
from ..finetuning.trainer import (
    CHECKPOINTS_NAME,
    finetune_model,
    make_image_processor,
    newest_checkpoint,
    prepare_process,
)
from ..finetuning.weights import build_finetune_model, load_config
from ..pretraining.loop import TrainingResult
from .report import draw_finished
from .run import RESULTS_NAME, Cell, LabelEfficiencyRun, cell_run, cells_of


logger = logging.getLogger(__name__)


def compare_label_efficiency(run: LabelEfficiencyRun) -> TrainingResult:
    """Train and score all unfinished cells, and draw the curves after each.

    Args:
        run (`LabelEfficiencyRun`): The comparison.

    Returns:
        `TrainingResult`: Whether all cells are finished; `folder` is `output_dir`, or the checkpoint at which training stopped.

    Raises:
        ValueError: If the comparison does not match its data or existing cells.
    """
    cells = cells_of(run)
    for cell in cells:
        if (cell.folder(run.output_dir) / RESULTS_NAME).is_file() or newest_checkpoint(cell.folder(run.output_dir)):
            # a curve over different kinds of models would be meaningless
            check_stored_run(cell_run(run, cell), cell.folder(run.output_dir))
    if run.unused_settings:
        logger.warning("not used, no curve has this name: settings_of %s", ", ".join(run.unused_settings))
    _check_initialisations(run, cells)
    run.save()
    todo = [cell for cell in cells if not (cell.folder(run.output_dir) / RESULTS_NAME).is_file()]
    stopped = _train_cells(run, todo, len(cells))
    if stopped is not None:
        return stopped
    draw_finished(run)
    return TrainingResult(True, len(cells), Path(run.output_dir), True)


def _train_cells(run: LabelEfficiencyRun, todo: list[Cell], total: int) -> TrainingResult | None:
    """Train, score and draw the cells in turn; returns the result of a stopped one, or `None`."""
    data: TaskData | None = None
    with Progress(todo, what="cells", total=total, initial=total - len(todo), unit="cells", leave=True) as bar:
        for cell in bar:
            settings = cell_run(run, cell)
            prepare_process(settings)
            # read once for all cells; each takes a fraction
            data = data or load_task_data(dataclasses.replace(settings, train_fraction=1.0))
            logger.info("cell %d of %d: %s", bar.n + 1, total, cell)
            result = train_cell(run, cell, settings, data)
            if not result.finished:
                return result
            draw_finished(run)
    return None


def _check_initialisations(run: LabelEfficiencyRun, cells: list[Cell]) -> None:
    """Check all initialisations before the first cell is trained, not hours later."""
    needed = {cell.name for cell in cells if not (cell.folder(run.output_dir) / RESULTS_NAME).is_file()}
    for name, init in run.initialisations.items():
        if name not in needed:
            continue
        if init == MONAI_UNET:
            monai_unet()
        elif init not in (SCRATCH, MAE):
            load_config(str(init), f"`initialisations`: {name}")


def train_cell(run: LabelEfficiencyRun, cell: Cell, settings: FinetuneRun, data: TaskData) -> TrainingResult:
    """Train one cell and score it; its result file is written last.

    Args:
        run (`LabelEfficiencyRun`): The comparison.
        cell (`Cell`): The cell.
        settings (`FinetuneRun`): Run configuration of the cell.
        data (`TaskData`): Rows with all labels.

    Returns:
        `TrainingResult`: Of its training.
    """
    chosen = choose_fraction(np.arange(len(data.training)), cell.fraction, cell.seed)
    part = TaskData(data.training.select(chosen.tolist()), data.validation, data.id2label)
    model = _build(run, cell, settings, data)
    result = finetune_model(settings, model, part, newest_checkpoint(cell.folder(run.output_dir)))
    if not result.finished:
        return result
    labels = [data.id2label[number] for number in sorted(data.id2label)]
    results = _score(settings, model, data.validation, labels)
    folder = cell.folder(run.output_dir)
    shutil.rmtree(folder / CHECKPOINTS_NAME, ignore_errors=True)
    if not run.keep_models:
        (settings.result_folder / "model.safetensors").unlink(missing_ok=True)
    about = {"fraction": cell.fraction, "seed": cell.seed, "num_training_frames": len(part.training)}
    named = dataclasses.replace(results, model=cell.name, settings={**results.settings, **about})
    write_results(named, folder / RESULTS_NAME)
    return result


def _score(settings: FinetuneRun, model: torch.nn.Module, rows: LabelledRows, labels: list[str]) -> EvaluationResults:
    scores = FrameScorer(settings.kind, model, make_image_processor(settings), labels).score(rows)
    description = Description(
        task=settings.task,
        model=str(settings.result_folder),
        data=settings.dataset,
        split=str(settings.validation_split),
        settings={"image_size": settings.image_size},
    )
    return build_results(scores, description)


def _build(run: LabelEfficiencyRun, cell: Cell, settings: FinetuneRun, data: TaskData) -> torch.nn.Module:
    if run.initialisations[cell.name] != MONAI_UNET:
        return build_finetune_model(settings, data.id2label)
    torch.manual_seed(settings.seed)
    return ReferenceUNet(len(data.id2label))
