"""What became of every tensor when weights from elsewhere were loaded."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LoadReport:
    """What :func:`hdxray_fast.create_encoder` did with ``weights``; ``print`` shows it.

    Attributes:
        loaded: parameters that were set from the weights, by this package's names.
        resized: parameters brought to another grid, and how.
        converted: what was rewritten without changing what it computes (channels, joined projections, dtypes).
        missing: parameters that the weights lack; they have their initial values.
        unexpected: tensors that nothing here corresponds to.
        left_out: tensors that an encoder has no use for (heads, poolers, mask tokens, decoders), by the weights' names.
        new: parameters that were asked for beside the weights (an attention pool); they have their initial values.
        assumed: settings that the weights do not tell, and what was taken.
        source: the weights, as they were named.
        layout: whose names the tensors had.
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    source: str = ""
    layout: str = ""

    @property
    def complete(self) -> bool:
        """Nothing is missing and nothing was unexpected."""
        return not (self.missing or self.unexpected)

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.layout})", f"  loaded      {len(self.loaded)} tensors"]
        lines += [f"  resized     {line}" for line in self.resized]
        lines += [f"  converted   {line}" for line in self.converted]
        lines += [f"  assumed     {line}" for line in self.assumed]
        for title, names in (("left out", self.left_out), ("new", self.new)):
            if names:
                lines.append(f"  {title:<11} {shortened(names)}")
        lines.append(f"  missing     {shortened(self.missing)}")
        lines.append(f"  unexpected  {shortened(self.unexpected)}")
        return "\n".join(lines)


def shortened(names: list[str], most: int = 4) -> str:
    """The number of ``names`` and the first of them."""
    if not names:
        return "none"
    more = ", ..." if len(names) > most else ""
    return f"{len(names)}: {', '.join(names[:most])}{more}"
