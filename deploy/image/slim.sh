#!/bin/sh
# Remove from /opt/farm what no server opens: ONNX Runtime for C programs (Python's module holds its own copy), its tools
# for making models, NumPy's tests.
set -eu
cd /opt/farm/lib/python3*/site-packages
rm -rf onnxruntime/capi/libonnxruntime.so.* onnxruntime/transformers onnxruntime/quantization onnxruntime/tools \
    onnxruntime/datasets onnxruntime/backend
find numpy -type d -name tests -prune -exec rm -rf {} +
