"""`isobit targets`, `ops`, `formats`, `recipes`, `families`: what there is."""

from __future__ import annotations

from isobit.targets.target import TARGETS, target
from isobit.targets.toolchain import ToolMissing
from isobit.tools import show


def targets_command(as_json: bool) -> None:
    from isobit.targets.mcu.boards import BOARDS

    rows = []
    for name, row in TARGETS.items():
        try:
            here, detail = "yes", target(name).probe()
        except ToolMissing as e:
            here, detail = "no", str(e)
        rows.append({"target": name, "here": here, "what": row.summary, "toolchain": detail})
    if as_json:
        show.print_json({"targets": rows, "boards": list(BOARDS)})
    else:
        show.print_table("", list(rows[0]), [list(r.values()) for r in rows])
        print(f"\nboards of mcu: {', '.join(BOARDS)}")


def ops_command(as_json: bool) -> None:
    from isobit.quant.ops import OPS

    rows = [
        {"op": name, "structure": op.structure.name.lower(), "what": op.summary, "cases": len(op.cases)}
        for name, op in OPS.items()
    ]
    if as_json:
        show.print_json(rows)
    else:
        show.print_table("", list(rows[0]), [list(r.values()) for r in rows], right=("cases",))


def families_command(as_json: bool) -> None:
    from isobit.quant.zoo.families import FAMILIES

    rows = [
        {"family": name, "what": f.summary, "tiny": " x ".join(map(str, f.shape)), "odd": " x ".join(map(str, odd))}
        for name, f in FAMILIES.items()
        for _, odd in f.sizes()[1:]
    ]
    if as_json:
        show.print_json(rows)
    else:
        show.print_table("", list(rows[0]), [list(r.values()) for r in rows])


def recipes_command(as_json: bool) -> None:
    from isobit.quant.formats import format_named
    from isobit.quant.recipe import RECIPES

    rows = [
        {k: v for k, v in vars(r).items() if k != "layers"}
        | {"state_bits": r.state_bits or "certified", "bits_per_weight": format_named(r.weights).bits}
        for r in RECIPES.values()
    ]
    if as_json:
        show.print_json(rows)
    else:
        show.print_table("", list(rows[0]), [list(r.values()) for r in rows])


def formats_command(as_json: bool) -> None:
    from isobit.quant.formats import FORMATS, GROUPS, MX, format_named
    from isobit.quant.formats.blocks import RULES

    rows = [
        {"format": name, "bits_per_weight": f.bits, "what": f.what}
        for name in (*FORMATS, *MX)
        for f in (format_named(name),)
    ]
    if as_json:
        show.print_json(rows)
        return
    show.print_table("", list(rows[0]), [list(r.values()) for r in rows], right=("bits_per_weight",))
    print(
        f"\nany of them in groups, FORMAT-g{'|'.join(map(str, GROUPS))}, or, but MX, with one scale, FORMAT-tensor; "
        f"other minifloats, e2m2, e3m3b5 (bias 5); other scales of MX, mxfp4-{'|'.join(RULES)}"
    )
