"""The encoder as one file that runs without decar: waveform `(B, T)` in, `(B, D)` out, any `B`, `T` up to a piece.

A sound longer than a piece (the encoder's `max_frames`, 10 s; `max_samples` in the file's metadata) is refused by the
exported file: the number of pieces would be a loop, which exporters do not follow. Cut it every `piece_hop` samples and
average by frames, as `models.embed.embed_clips` does.

What `Encoder.embed` does is written down once more here, in operations whose sizes an exporter can follow. The log-mel
is a strided convolution with the windowed Fourier basis: exact to rounding, since a frame is 400 samples of an FFT of
1024 and the place of the window in it only turns phases; and every runtime has a convolution, where few have an STFT
of any length.
"""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

import decar
from decar.audio import FrontEnd, LogMel
from decar.audio.logmel import LEAST_NORM
from decar.errors import ConfigError, ExportError, reason_of
from decar.files import advice, whole
from decar.models.embed import evaluating
from decar.models.encoder import Encoder

Target = Literal["onnx", "torch"]

TOLERANCE = 2**-10
"""How far a written file may be from `Encoder.embed`: largest difference of a clip over the largest value of it.

One step of float16, to which both round log-mels. The file's log-mel is a convolution, so a value halfway between two
such numbers may go either way."""

MULTIPLE = 32  # frames that lengths are rounded up to, as in audio.crops.padded_frames

Embed = Callable[[Tensor], Tensor]


class WaveformEncoder(nn.Module):
    """`Encoder.embed` in operations that can be exported; it shares the network of the encoder."""

    basis: Tensor
    mel: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.spec = encoder.frontend
        self.min_frames, self.max_frames = encoder.min_frames, encoder.max_frames
        self.register_buffer("basis", _fourier_basis(self.spec))
        log_mel = cast(LogMel, encoder.logmel)
        self.register_buffer("mel", log_mel.mel_scale.fb.T.detach().cpu().clone())
        self.network = encoder.network

    def forward(self, waveform: Tensor) -> Tensor:
        """Embed `(B, T)` float32 as `(B, D)`."""
        spec = self.spec
        if spec.l2:
            waveform = waveform / waveform.norm(dim=1, keepdim=True).clamp_min(LEAST_NORM)
        have, want = self._frames(waveform.shape[1])
        # a size that depends on T alone, within these bounds; int() around it is what the exporter cannot follow
        n_frames: int = want.item()  # type: ignore[assignment]
        torch._check(n_frames >= min(self.min_frames, self.max_frames))
        torch._check(n_frames <= self.max_frames)
        padded = functional.pad(waveform, (0, spec.n_samples(self.max_frames)))  # so that every index below is in it
        # a longer sound asks for samples that are not there, which every runtime refuses; none would refuse to cut it
        beyond = torch.where(have > self.max_frames, 2**62, 0)
        samples = padded.index_select(1, beyond + torch.arange(spec.n_samples(n_frames)))
        parts = functional.conv1d(samples.unsqueeze(1), self.basis, stride=spec.hop_length)
        real, imaginary = parts.chunk(2, dim=1)
        mel = torch.matmul(self.mel, (real * real + imaginary * imaginary).sqrt()).clamp_min(spec.floor)
        # rounded as in a store; a frame that the clip does not fill is silence, not what is left of the clip in it
        heard = torch.where(torch.arange(n_frames) < have, mel.log().half().float(), spec.silence)
        embedding: Tensor = self.network(heard.unsqueeze(1))
        return embedding

    def _frames(self, n_samples: int) -> tuple[Tensor, Tensor]:
        """Frames of the clip, one at least, and the frames to be embedded, as `padded_frames` has it; tensors ()."""
        given = torch.scalar_tensor(n_samples, dtype=torch.int64)
        have = 1 + torch.clamp(given - self.spec.win_length, min=0) // self.spec.hop_length
        rounded = (have + MULTIPLE - 1) // MULTIPLE * MULTIPLE
        return have, torch.where(have <= self.min_frames, self.min_frames, rounded).clamp(max=self.max_frames)


def _fourier_basis(spec: FrontEnd) -> Tensor:
    """Cosines, then sines, of each bin of the FFT times the window: `(2 * bins, 1, win_length)`."""
    time = torch.arange(spec.win_length, dtype=torch.float64)
    bins = torch.arange(spec.n_fft // 2 + 1, dtype=torch.float64)
    angle = 2 * torch.pi * (bins[:, None] * time % spec.n_fft) / spec.n_fft
    window = torch.hann_window(spec.win_length, dtype=torch.float64)
    return torch.cat([angle.cos() * window, angle.sin() * window]).float().unsqueeze(1)


def export_encoder(encoder: Encoder, path: str | Path, to: Target) -> float:
    """Write an encoder with its front-end, read the file back, compare; it stays only if it embeds alike.

    Args:
        encoder: The encoder; it is moved to the CPU.
        path: The file; `.onnx` and `.pt2` are the usual endings.
        to: `onnx`, or `torch` for a program of `torch.export`.

    Returns:
        The largest relative difference to `Encoder.embed` over the clips that were tried, see `TOLERANCE`.

    Raises:
        ConfigError: `to` is neither.
        ExportError: A package is missing, the network cannot be exported, the file cannot be written, or what was
            written embeds differently.
    """
    if to not in get_args(Target):
        raise ConfigError(f"--to {to}: choose one of {', '.join(get_args(Target))}")
    if not isinstance(encoder.logmel, LogMel):
        raise ExportError(f"{encoder.description}: only encoders of decar can be exported")
    if to == "onnx":
        _need("onnx", "onnxscript", "onnxruntime")
    path, encoder = Path(path), encoder.cpu()
    with evaluating(encoder), _quietly():
        program = _trace(encoder)
        try:
            with whole(path) as part:
                (_write_onnx if to == "onnx" else _write_torch)(program, part, metadata(encoder))
                worst = largest_difference(encoder, load_exported(part, to))
                if not worst <= TOLERANCE:
                    raise ExportError(
                        f"{path}: not written, embeds differently by {worst:.1e}, more than {TOLERANCE:.1e}"
                    )
        except OSError as error:
            raise ExportError(f"{path}: could not be written ({error.strerror or error}): {advice(error)}") from error
    return worst


def metadata(encoder: Encoder) -> dict[str, str]:
    """What is written into the file."""
    return {
        "sample_rate": str(encoder.sample_rate),
        "embedding_dim": str(encoder.dim),
        "max_samples": str(longest(encoder)),
        "piece_hop": str(encoder.max_frames * encoder.frontend.hop_length),
        "decar_version": decar.__version__,
        "encoder_hash": encoder.hash(),
        "encoder": encoder.description,
        "settings": json.dumps(encoder.settings()),
    }


def longest(encoder: Encoder) -> int:
    """The most samples that an exported encoder takes: those of one piece."""
    return encoder.frontend.n_samples(encoder.max_frames + 1) - 1


def load_exported(path: str | Path, to: Target) -> Embed:
    """A written file as a function from waveforms `(B, T)` to embeddings `(B, D)`."""
    if to == "torch":
        module = torch.export.load(str(path)).module()
        return lambda waveform: module(waveform)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda waveform: torch.from_numpy(session.run(None, {"waveform": waveform.numpy()})[0])


@torch.no_grad()
def largest_difference(encoder: Encoder, embed: Embed, clips: list[Tensor] | None = None) -> float:
    """Largest difference to `Encoder.embed`, over the largest value of that clip; `clips` are batches `(B, T)`."""
    worst = 0.0
    for waveform in clips if clips is not None else trial_clips(encoder):
        expected, found = encoder.embed(waveform), embed(waveform)
        if found.shape != expected.shape or not torch.isfinite(found).all():
            return float("inf")
        scale = expected.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        worst = max(worst, float(((found - expected).abs().amax(1) / scale).max()))
    return worst


def trial_clips(encoder: Encoder) -> list[Tensor]:
    """Noise that swells, as one clip and as three, of lengths on either side of each bend of the padding's rule."""
    spec, generator = encoder.frontend, torch.Generator().manual_seed(0)
    clips = []
    for frames in (0, 1, encoder.min_frames, encoder.min_frames + 1, encoder.max_frames - 1, encoder.max_frames):
        n_samples = spec.n_samples(frames) + 7
        rise = torch.linspace(0, 0.5, n_samples)
        clips += [rise * torch.randn(size, n_samples, generator=generator) for size in (1, 3)]
    return clips


def _trace(encoder: Encoder) -> torch.export.ExportedProgram:
    module = WaveformEncoder(encoder).eval()
    # the upper end of the batch only keeps the exporter from thinking of sizes that no memory holds
    batch = torch.export.Dim("batch", min=1, max=2**16)
    samples = torch.export.Dim("samples", min=1, max=longest(encoder))
    try:
        return torch.export.export(
            module, (torch.zeros(2, 2 * encoder.sample_rate),), dynamic_shapes={"waveform": {0: batch, 1: samples}}
        )
    except Exception as error:  # the exporter fails in as many ways as there are networks
        raise ExportError(
            f"{encoder.description}: torch.export cannot follow this network ({reason_of(error)})"
        ) from error


def _write_onnx(program: torch.export.ExportedProgram, path: Path, facts: dict[str, str]) -> None:
    import onnx

    names = {"waveform": {0: "batch", 1: "samples"}}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its steps there
            written = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=["waveform"], output_names=["embedding"]
            )
        assert written is not None
        proto = written.model_proto
    except Exception as error:
        raise ExportError(f"--to onnx: torch's exporter failed ({reason_of(error)}); try --to torch") from error
    for value, dims in ((proto.graph.input[0], list(names["waveform"].values())), (proto.graph.output[0], ["batch"])):
        for dim, name in zip(value.type.tensor_type.shape.dim, dims, strict=False):
            dim.dim_param = name
    onnx.helper.set_model_props(proto, facts)
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))


def _write_torch(program: torch.export.ExportedProgram, path: Path, facts: dict[str, str]) -> None:
    with path.open("wb") as file:  # by its handle: torch wants the name to end in .pt2
        torch.export.save(program, file, extra_files={"decar.json": json.dumps(facts)})


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"--to onnx needs {', '.join(missing)}: pip install 'decar[export]'")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' warnings of their own inner affairs."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
