"""Engines: ways to run one network, behind one interface.

engine.py            what an engine is, which there are, what they need
torch_engines.py     eager, torch.compile, AOTInductor packages
onnx_runtime.py      ONNX Runtime
openvino_runtime.py  OpenVINO; int8 by nncf
build.py             a network → an engine; a model file → an engine
"""

from octvideo.inference.engines.build import MODEL_FILES, build_engine, load_model, write_model
from octvideo.inference.engines.engine import PRECISIONS, Engine, EngineName, Precision, check_choice

__all__ = [
    "MODEL_FILES",
    "PRECISIONS",
    "Engine",
    "EngineName",
    "Precision",
    "build_engine",
    "check_choice",
    "load_model",
    "write_model",
]
