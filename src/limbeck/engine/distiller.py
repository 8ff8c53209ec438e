"""The distiller: a student, what teaches it, and what it is taught, as one LightningModule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from limbeck.engine.accumulation import Window
from limbeck.engine.checkpoints import ExactResume
from limbeck.engine.optimizer import OptimizerSettings, log_every, training_steps
from limbeck.errors import LimbeckError, UserError
from limbeck.losses.reduce import counting
from limbeck.nn.mode import evaluating
from limbeck.nn.substitute import WeightView, substituted
from limbeck.objectives.base import Objective, total
from limbeck.signals import Batch, Forward, Signals, move, run_network
from limbeck.sources import Live, Source
from limbeck.taps import Taps


class Distiller(LightningModule):
    """Trains one student with any ordinary Lightning ``Trainer``.

    Args:
        student: any network.
        objective: what is minimised; its ``needs`` say which signals are read.
        teacher: a :class:`~limbeck.sources.Source`, or a plain network (taken as ``Live(network)``), or None.
        optimizer: settings of the optimiser and schedule.
        taps: inner tensors of the student, name -> path; see :class:`limbeck.taps.Taps`.
        forward: how to run the student on a batch.
        trainable: patterns of parameter names that learn; everything else is frozen. A part that does not learn stays
            in eval mode, whoever froze it; the rest is put into training mode.
        weights: what every forward pass of the student sees in the place of its weights (quantised ones, say); what
            the view has to learn itself is trained too. The optimiser moves the student's own weights, which keep
            their full precision until :meth:`finish` writes the view's in their place.
        log_gradient_norms: also log the gradient norm of every term (one more backward pass per logged step).

    With ``accumulate_grad_batches`` a step is that of the whole batch, however its rows are spread over the
    micro-batches: see :class:`~limbeck.engine.accumulation.Window`.

    The checkpoint holds the student, the objective's own weights (projectors) and the state of a changing teacher;
    of a frozen teacher only the fingerprint.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        teacher: Source | nn.Module | None = None,
        *,
        optimizer: OptimizerSettings | None = None,
        taps: Mapping[str, str] | None = None,
        forward: Forward = run_network,
        trainable: Iterable[str] = ("*",),
        weights: WeightView | None = None,
        log_gradient_norms: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.objective, self.weights = student, objective, weights
        self.teacher = Live(teacher) if isinstance(teacher, nn.Module) else teacher
        if self.teacher is not None and not isinstance(self.teacher, Source):
            raise UserError("teacher", type(teacher).__name__, "a source, a network or None")
        if objective.needs.teacher and self.teacher is None:
            raise UserError(
                "teacher", "none", f"a source of {', '.join(objective.needs.teacher)}, which the objective needs"
            )
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.run_student = forward
        self.log_gradient_norms = log_gradient_norms
        self.taps = Taps(student, dict(taps or {}))
        freeze_except(student, tuple(trainable))
        self.steps_done = self.epochs_done = 0
        self.latest_terms: dict[str, Tensor] = {}
        self._viewed = False
        self.window = Window()
        self._refuse_shared_weights()
        if weights is not None and getattr(student, "is_gradient_checkpointing", False):
            raise UserError(
                "weights",
                "a view, for a student with gradient checkpointing",
                "gradient checkpointing switched off",
                "activations would be computed again from the student's own weights",
            )
        # A pretrained network arrives in eval mode, and a Trainer leaves the mode as it is.
        self.train()

    def _refuse_shared_weights(self) -> None:
        own = {id(parameter) for parameter in self.student.parameters()}
        networks = self.teacher.modules() if self.teacher is not None else []
        shared = sum(id(parameter) in own for network in networks for parameter in network.parameters())
        if shared:
            raise UserError(
                "teacher",
                f"a network that shares {shared} weights with the student",
                "a network of its own",
                "use Snapshot or EMA to learn from the student itself",
            )

    # Signals.

    def student_signals(self, batch: Batch) -> Signals:
        """The student's outputs and taps for a batch."""
        with self.in_view(), self.taps.capture() as tapped:
            signals = self.run_student(self.student, batch)
        return {**signals, **tapped}

    @contextmanager
    def in_view(self) -> Iterator[None]:
        """A block in which the student is what its forward passes see: with the view's weights, where there is one."""
        # What is quantised already must not be quantised again.
        if self.weights is None or self._viewed:
            yield
            return
        self._viewed = True
        try:
            with substituted(self.student, self.weights.tensors(self.student)):
                yield
        finally:
            self._viewed = False

    def teacher_signals(self, batch: Batch) -> Signals:
        """What the objective needs of the teacher for a batch."""
        if self.teacher is None or not self.objective.needs.teacher:
            return {}
        return self.teacher(batch, self.objective.needs.teacher)

    def build(self, batch: Batch) -> Distiller:
        """One dry forward: checks that student, teacher and objective fit, and inserts projectors.

        Call it before training with a plain Trainer when the objective compares features of different widths.
        """
        if self.teacher is not None:
            self.teacher.to(self.device)
        with evaluating(self), torch.no_grad():
            student, teacher = self.student_signals(batch), self.teacher_signals(batch)
            self.objective.build(student, teacher)
            self.objective(student, teacher, batch)
        return self

    # Training.

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.objective.set_progress(self.progress)
        # The teacher first: what it needs on the way is free again before the student's graph is built.
        teacher = self.teacher_signals(batch)
        with counting() as counts:
            terms = self.objective(self.student_signals(batch), teacher, batch)
        loss = total(terms)
        logged = {**terms, "loss": loss, **self.objective.observed()}
        self.latest_terms = {name: value.detach() for name, value in logged.items()}
        pieces = self.trainer.accumulate_grad_batches
        if pieces > 1:
            loss = self.window.weigh(loss, counts, pieces, whole=batch.get("denominator") is not None)
            self.latest_terms = self.window.mean(self.latest_terms)
        # Counted as Lightning and our own log count: the step that is under way has been taken when they look.
        if (self.steps_done + 1) % log_every(self.trainer) == 0:
            if self.log_gradient_norms:
                self.latest_terms |= self.gradient_norms(terms)
            if self.trainer.loggers:
                self.log_dict(self.latest_terms, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        terms = self.objective(self.student_signals(batch), self.teacher_signals(batch), batch)
        values = {f"validation/{name}": value for name, value in {**terms, "loss": total(terms)}.items()}
        self.log_dict(values, batch_size=len(batch["id"]), sync_dist=True)

    def gradient_norms(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Norm of the gradient of each term with respect to the trainable weights of the student and its view."""
        parts = [self.student, *([self.weights] if self.weights else [])]
        weights = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
        norms = {}
        for name, value in terms.items():
            if value.requires_grad:
                gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
                found = [gradient.norm() for gradient in gradients if gradient is not None]
                norms[f"gradient_norm/{name}"] = torch.stack(found).norm() if found else value.new_zeros(())
        return norms

    @property
    def progress(self) -> float:
        """How far training is, from 0 to 1."""
        return self.steps_done / self.trainer.estimated_stepping_batches

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self.optimizer_settings.build(
            self.named_parameters(), training_steps(self.trainer), fused=self.trainer.precision != "16-mixed"
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Lightning refuses to clip for fused optimisers under any mixed precision; only float16 scales gradients.
        if gradient_clip_val and self.trainer.precision == "bf16-mixed" and gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        # Before the gradient is clipped, which goes by its size.
        self.window.close(self.parameters())

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.steps_done += 1
        if self.teacher is not None:
            self.teacher.after_step(self.student, self.steps_done)

    def on_train_start(self) -> None:
        # A checkpoint of an epoch's last batch, or of its validation, is resumed behind the epoch's end.
        self._end_epoch(self.current_epoch)

    def on_train_epoch_end(self) -> None:
        self._end_epoch(self.current_epoch + 1)

    def _end_epoch(self, epoch: int) -> None:
        if self.teacher is not None and epoch > self.epochs_done:
            self.teacher.after_epoch(self.student, epoch)
        self.epochs_done = max(epoch, self.epochs_done)

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        # BatchNorm of a frozen part would go on learning its statistics.
        if self.weights is None or not self.weights.trains_statistics:
            for module in frozen_modules(self.student):
                module.eval()
        return self

    # State and devices.

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.steps_done = self.epochs_done = 0
        if self.teacher is not None:
            self.teacher.to(self.device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return move(batch, device)

    def configure_callbacks(self) -> list[Callback]:
        return [ExactResume()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["limbeck"] = {"steps_done": self.steps_done, "epochs_done": self.epochs_done}
        if self.teacher is not None:
            checkpoint["limbeck"]["teacher"] = {
                "fingerprint": self.teacher_fingerprint(),
                "state": self.teacher.state_dict(),
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("limbeck")
        if state is None:
            raise LimbeckError("this checkpoint was not written by a Distiller: its teacher and step are missing")
        self.steps_done, self.epochs_done = state["steps_done"], state["epochs_done"]
        if self.teacher is not None:
            if "teacher" not in state:
                raise UserError("resume", "a checkpoint without a teacher", "one that was trained with this teacher")
            if state["teacher"]["fingerprint"] != self.teacher_fingerprint():
                raise UserError(
                    "teacher", "another teacher than the checkpoint's", "the teacher that training began with"
                )
            self.teacher.load_state_dict(state["teacher"]["state"])

    def teacher_fingerprint(self) -> str:
        """The teacher's fingerprint, hashed once: a frozen teacher does not change."""
        if not hasattr(self, "_fingerprint"):
            self._fingerprint = self.teacher.fingerprint() if self.teacher is not None else ""
        return self._fingerprint

    def finish(self) -> nn.Module:
        """The student alone, in eval mode, without hooks, projectors or anything else that only training needed.

        A view's weights are written into it for good.
        """
        self.taps.close()
        if self.weights is not None:
            self.weights.write(self.student)
            self.weights = None
        return self.student.eval()


def freeze_except(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Let only the parameters whose names match a pattern learn; ``("*",)`` leaves each as the caller set it."""
    if patterns == ("*",):
        return
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError("trainable", pattern, names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))


def frozen_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of a network that have weights of which none learns."""
    for module in model.children():
        if any(parameter.requires_grad for parameter in module.parameters()):
            yield from frozen_modules(module)
        elif any(True for _ in module.parameters()):
            yield module
