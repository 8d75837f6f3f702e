"""Makes this package's models known to transformers and timm, without importing either.

After ``import hdxray_fast``, ``transformers.AutoModel.from_pretrained(folder)`` and
``timm.create_model("hdxray_vit_base_patch16_1280")`` work, whichever library was imported first. Where the library's
own registry is imported already, ours is entered at once. Where it is not, a finder on ``sys.meta_path`` waits for it
and enters ours right after it has been executed: that costs one dictionary look-up per imported module, and a program
that never imports those libraries never pays more.
"""

from __future__ import annotations

import importlib
import sys
import warnings

# the registry to wait for: (our module, the function that enters our models there)
REGISTRIES = {
    "transformers.models.auto.configuration_auto": ("hf_config", "register"),
    "transformers.models.auto.modeling_auto": ("hf", "register"),
    "transformers.models.auto.image_processing_auto": ("hf_images", "register"),
    "timm.models": ("timm_models", "register"),
}


class _Waiting:
    """A finder that finds nothing by itself: it lets the others find a registry and registers after its execution."""

    def find_spec(self, name: str, path=None, target=None):
        if name not in REGISTRIES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            execute = spec.loader.exec_module

            def exec_module(module) -> None:
                execute(module)
                if module.__name__ == name:  # some loaders serve many modules
                    _register(name)

            spec.loader.exec_module = exec_module
        return spec


def _register(registry: str) -> None:
    module, function = REGISTRIES[registry]
    try:
        getattr(importlib.import_module(f".{module}", __package__), function)()
    except Exception as error:  # whoever imports the library may not want our models at all
        warnings.warn(f"hdxray_fast: its models are not known to {registry} ({error})", RuntimeWarning, stacklevel=2)


def register_or_wait() -> None:
    """Enter our models where a registry is imported, and wait for the others."""
    if any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Waiting())
    for registry in REGISTRIES:
        if registry in sys.modules:
            _register(registry)
