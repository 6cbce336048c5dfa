"""Run one optimiser on one file. Started in the peers' own environment: python tool.py NAME IN OUT.

Each is called as its documentation says, with the passes that fold batch norms.
"""

from __future__ import annotations

import sys

import onnx


def onnxoptimizer(source: str, target: str) -> None:
    """All fuse and eliminate passes."""
    import onnxoptimizer as tool

    onnx.save(tool.optimize(onnx.load(source), tool.get_fuse_and_elimination_passes()), target)


def onnxsim(source: str, target: str) -> None:
    """Its defaults."""
    import onnxsim as tool

    model, _ = tool.simplify(onnx.load(source))
    onnx.save(model, target)


def onnxslim(source: str, target: str) -> None:
    """Its defaults."""
    import onnxslim as tool

    onnx.save(tool.slim(onnx.load(source)), target)


def onnxscript(source: str, target: str) -> None:
    """The optimizer and the default rewrite rules."""
    from onnxscript import optimizer, rewriter

    onnx.save(rewriter.rewrite(optimizer.optimize(onnx.load(source))), target)


def onnxruntime(source: str, target: str) -> None:
    """Offline optimisation at the level that stays within standard operators."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = target
    options.log_severity_level = 4
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


TOOLS = {f.__name__: f for f in (onnxoptimizer, onnxsim, onnxslim, onnxscript, onnxruntime)}

if __name__ == "__main__":
    # onnxsim imports torch where it finds it, for over a second; torch is there only for the exports
    sys.modules["torch"] = None  # type: ignore[assignment]
    TOOLS[sys.argv[1]](sys.argv[2], sys.argv[3])
