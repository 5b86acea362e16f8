"""How much a file may ask for: a header of a few bytes can claim any rate, length or number of rows.

The limits are one setting of the process, like `csv.field_size_limit`: every door that reads sounds or tables keeps to
them. The command lines set them from their options.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from decar.errors import AudioError, check_positive, check_whole


@dataclass(frozen=True)
class Limits:
    """What is refused before it costs memory or hours.

    Attributes:
        min_rate: Hz. Resampling multiplies the samples of a slower sound by hundreds.
        max_rate: Hz. Ultrasound recorders go to 500 kHz.
        max_channels: Channels of a sound.
        max_hours: Length of one clip; a longer file can be read in stretches.
        max_rows: Rows of a table.

    Raises:
        ConfigError: A number is not positive, or whole where it has to be.
    """

    min_rate: int = 200
    max_rate: int = 1_000_000
    max_channels: int = 64
    max_hours: float = 12.0
    max_rows: int = 5_000_000

    def __post_init__(self) -> None:
        for name in ("min_rate", "max_rate", "max_channels", "max_rows"):
            check_whole(name, getattr(self, name), 1)
        check_positive("max_hours", self.max_hours)

    def check_rate(self, rate: float) -> None:
        """Raise an AudioError unless a rate (Hz) lies within the limits."""
        if rate < self.min_rate:
            raise AudioError(f"rate too low: {rate:,} Hz, the limit min_rate is {self.min_rate:,} Hz")
        if rate > self.max_rate:
            raise AudioError(f"rate too high: {rate:,} Hz, the limit max_rate is {self.max_rate:,} Hz")

    def check_sound(self, rate: int, channels: int) -> None:
        """Raise an AudioError unless rate (Hz) and number of channels lie within the limits."""
        self.check_rate(rate)
        if channels > self.max_channels:
            raise AudioError(f"too many channels: {channels:,}, the limit max_channels is {self.max_channels:,}")

    def check_seconds(self, seconds: float) -> None:
        """Raise an AudioError when a clip is longer than the limit; a sample or two of rounding do not count."""
        if seconds > self.max_hours * 3600 + 1e-3:
            raise AudioError(
                f"too long: {seconds / 3600:.2f} h or more, the limit max_hours is {self.max_hours:g} h; raise it, or "
                "list stretches of the file (start, duration)"
            )

    def changed(self) -> str:
        """The limits of sounds that are not the usual ones, as text: which clips are refused depends on them."""
        usual = asdict(Limits())
        return " ".join(f"{k}={v:g}" for k, v in asdict(self).items() if v != usual[k] and k != "max_rows")


_current = Limits()


def limits() -> Limits:
    """The limits of this process."""
    return _current


def set_limits(new: Limits) -> None:
    """Set the limits of this process; sounds and tables read from now on keep to them."""
    global _current
    _current = new
