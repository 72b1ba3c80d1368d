"""Loading an engine that was built and checked here."""

from __future__ import annotations

from typing import Any

from edgeuda.errors import ModelError
from edgeuda.records.build import BuildOptions
from engines.tensorrt.library import Library


def load_engine(
    library: Library, plan: bytes, options: BuildOptions, origin: str
) -> tuple[Any, Any]:
    """Deserialise an engine.

    Args:
        library: The TensorRT to load it with; there has to be a device.
        plan: The engine's bytes. They are native code: only what was built here may come this far.
        options: What it was built for.
        origin: Its name in errors.

    Returns:
        TensorRT's runtime, which has to outlive the engine, and the engine.

    Raises:
        ModelError: If this TensorRT cannot load it; the message says why.
    """
    logger, log = library.logger()
    runtime = library.module.Runtime(logger)
    if options.version_compatible:
        # Such an engine holds a runtime of its own, which is refused unless it is allowed.
        runtime.engine_host_code_allowed = True
    if options.dla_core is not None:
        runtime.DLA_core = options.dla_core
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reasons = log.of("ERROR") or ["it gave no reason"]
        msg = (
            f"{origin}: {library.title} cannot load it: {'; '.join(reasons[:3])}. Engines "
            "are of one TensorRT and one GPU: build it here"
        )
        raise ModelError(msg)
    return runtime, engine
