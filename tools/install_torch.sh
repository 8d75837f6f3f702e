#!/usr/bin/env bash
# Installs PyTorch into the environment of a Python, and says before how much that is.
#
#     tools/install_torch.sh PYTHON REQUIREMENT [asked]
#
# With `asked` the requirement is taken as it is. Otherwise the CPU build of the same version is preferred where no NVIDIA
# GPU is found: pip finds one if the user has named an index or folder that offers it, and PyPI's build is taken if not.
# What was installed is written to torch.txt beside the environment's pyvenv.cfg: a constraint for later installations.
set -euo pipefail
python=$1 wanted=$2 asked=${3:-}

install() {
    "$python" -m pip --disable-pip-version-check install "$@"
}

has_nvidia() {
    [[ -e /dev/nvidia0 ]] || nvidia-smi -L >/dev/null 2>&1
}

size="about 200 MB to download for a CPU build, 2.7 GB for one with CUDA libraries"
[[ $(uname) == Linux ]] || size="about 100 MB to download"

if [[ -n $asked || $(uname) != Linux || $wanted != torch==* || $wanted == *+* ]] || has_nvidia; then
    echo "PyTorch ($wanted): $size"
    install "$wanted"
else
    echo "PyTorch ($wanted): $size; there is no NVIDIA GPU here, so a CPU build is asked for first"
    if ! install "$wanted+cpu" 2>/dev/null; then
        echo "PyTorch: no index of this pip offers a CPU build; taking the one with CUDA libraries"
        install "$wanted"
    fi
fi
"$python" -c 'import importlib.metadata as m, sys; print("torch==" + m.version("torch"))' \
    >"$("$python" -c 'import sys; print(sys.prefix)')/torch.txt"
