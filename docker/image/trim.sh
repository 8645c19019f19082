#!/usr/bin/env bash
# trim.sh PREFIX: takes out of a virtual environment what serving never reads: pip and setuptools,
# ONNX Runtime's tools for making models, the packages' own tests, headers, type stubs and Cython
# sources. NVIDIA's packages are left as they are. Says how much that was.
set -euo pipefail
prefix=${1:?say which environment: trim.sh PREFIX}
size() { du -sm "$prefix" | cut -f1; }

before=$(size)
packages=$("$prefix/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$packages"/{pip,setuptools,_distutils_hack,pkg_resources} \
  "$packages"/{pip,setuptools}-*.dist-info "$packages"/distutils-precedence.pth \
  "$packages"/onnxruntime/{quantization,tools,transformers} \
  "$prefix"/bin/pip* "$prefix"/include "$prefix"/share
ours=(find "$packages" -path "$packages/nvidia" -prune -o)
"${ours[@]}" -type d \( -name tests -o -name include \) -prune -exec rm -rf {} +
"${ours[@]}" -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' \
  -o -name '*.h' -o -name '*.hpp' -o -name '*.a' \) -exec rm {} +
echo "trimmed $prefix from $before to $(size) MB"
