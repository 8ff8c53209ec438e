"""Who is guided, and by how much: a policy as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guidance:
    """Scales of classifier-free guidance; 1 is none, and asks a network once.

    Attributes:
        train: k1, of the fake score while it is trained, through the guided mix.
        fake: k2 = k3, of the fake score in the generator's loss. teacher: k4.
        fake_unconditional: the fake score gets the null condition everywhere.
    """

    train: float = 1.0
    fake: float = 1.0
    teacher: float = 1.0
    fake_unconditional: bool = False

    @classmethod
    def lsg(cls, scale: float) -> Guidance:
        """Long and short: the same k everywhere. Low k for FID, high k for alignment."""
        return cls(scale, scale, scale)

    @classmethod
    def zero_cfg(cls) -> Guidance:
        """No guidance at all; the gap to an unconditional fake score holds the condition's pull already."""
        return cls(fake_unconditional=True)

    @classmethod
    def anti_cfg(cls, scale: float = -1.0) -> Guidance:
        """A negative guidance in the fake score alone [value recalled], which is trained plainly."""
        return cls(fake=scale)

    @property
    def fake_guided(self) -> bool:
        """Whether the fake score must know the null condition."""
        return not self.fake_unconditional and (self.train != 1 or self.fake != 1)

    @property
    def needs_null(self) -> bool:
        """Whether anything needs the null condition."""
        return self.fake_unconditional or self.fake_guided or self.teacher != 1
