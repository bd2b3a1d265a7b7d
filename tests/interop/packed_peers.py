"""AWQ and GPTQ models beside the same models in plain numbers (run by the script `packed` beside this file).

Each line is a kind of packing. AutoAWQ's or AutoGPTQ's code packs every matrix of a small Mixtral but router, embedding
and head, and unpacks it. A model of the unpacked numbers in f32 must have the same weights here, to the bit, and the same
logits, to the bit.
"""
import importlib
import json
import logging
import pathlib
import sys
import tempfile
import types
import warnings

import torch
from program import run
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

TOKENS = [1, 77, 120, 5, 12, 99, 9, 33, 101, 64, 7, 127]
SHAPE = dict(vocab_size=128, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, num_local_experts=4, num_experts_per_tok=2,
             initializer_range=0.1)
failures = 0


def without_their_parents(root, name):
    """A module of a package whose `__init__` files import what only a GPU has."""
    parents = name.split(".")[:-1]
    for depth in range(1, len(parents) + 1):
        parent = types.ModuleType(".".join(parents[:depth]))
        parent.__path__ = [str(pathlib.Path(root, *parents[:depth]))]
        sys.modules.setdefault(parent.__name__, parent)
    return importlib.import_module(name)


def rounded(weight, bits, groups, symmetric):
    """Scales and zero points [group, output] for a weight [output, input], by the least and greatest of each group."""
    most = 2**bits - 1
    scales, zeros = [], []
    for group in range(int(groups.max()) + 1):
        part = weight[:, groups == group]
        if symmetric:
            scales.append(2 * part.abs().amax(1) / most)
            zeros.append(torch.full((len(weight),), float((most + 1) // 2)))
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scales.append((high - low) / most)
            zeros.append(torch.round(-low / scales[-1]).clamp(1, most))  # AutoGPTQ stores each less 1
    return torch.stack(scales).half().float(), torch.stack(zeros)


def linear(weight):
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return layer


def within_codes(weight, scales, zeros, groups, bits):
    """The weight with what no code reaches cut off: the peers' packing code takes for granted that each fits."""
    s, z = scales[groups].T, zeros[groups].T
    return ((weight / s + z).round().clamp(0, 2**bits - 1) - z) * s


def awq(gemm, packing, group):
    def pack(weight, random):
        groups = torch.arange(weight.shape[1]) // group
        scales, zeros = rounded(weight, 4, groups, False)
        weight = within_codes(weight, scales, zeros, groups, 4)
        layer = gemm.WQLinear_GEMM.from_linear(linear(weight), 4, group, scales=scales, zeros=zeros)
        # In f32: the product of a code and a scale of 11 bits is exact there.
        plain = packing.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, group).T
        return dict(layer.named_buffers()), plain, weight
    return pack, {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}


def gptq(module, bits, group, in_order, symmetric):
    def pack(weight, random):
        inputs = weight.shape[1]
        size = inputs if group == -1 else group
        groups = torch.arange(inputs) // size
        if not in_order:
            groups = groups[torch.randperm(inputs, generator=random)]
        scales, zeros = rounded(weight, bits, groups, symmetric)
        weight = within_codes(weight, scales, zeros, groups, bits)
        layer = module.QuantLinear(bits, group, inputs, weight.shape[0], bias=False, weight_dtype=torch.float32)
        layer.pack(linear(weight), scales.T.contiguous(), zeros.T.contiguous(), groups.int())
        with torch.no_grad():
            plain = layer(torch.eye(inputs)).T
        tensors = dict(layer.named_buffers())
        tensors["scales"] = tensors["scales"].half()
        return tensors, plain, weight
    return pack, {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": not in_order, "sym": symmetric,
                  "checkpoint_format": "gptq"}


def plain_tensors(model):
    """Names of transformers 4, one tensor an expert."""
    found = {}
    for name, value in model.state_dict().items():
        value = value.detach().float()
        before = name.split(".mlp.")[0] + ".block_sparse_moe."
        if name.endswith("mlp.experts.gate_up_proj"):
            for expert, both in enumerate(value):
                found[f"{before}experts.{expert}.w1.weight"], found[f"{before}experts.{expert}.w3.weight"] = both.chunk(2)
        elif name.endswith("mlp.experts.down_proj"):
            for expert, matrix in enumerate(value):
                found[f"{before}experts.{expert}.w2.weight"] = matrix
        elif name.endswith("mlp.gate.weight"):
            found[before + "gate.weight"] = value
        else:
            found[name] = value
    return {name: value.contiguous().clone() for name, value in found.items()}


def logits(program, folder, out):
    run(program, "generate", "--model", folder, "--ids", ",".join(map(str, TOKENS)), "--method", "generate_raw", "--dtype",
        "fp32", "--out", out)
    return load_file(out)["logits"].clone()


def compare(program, title, tensors, config, pack, quantization, scratch):
    global failures
    folder = scratch / title.replace(" ", "-").replace(",", "")
    packed, plain, off, random = {}, {}, 0.0, torch.Generator().manual_seed(3)
    for name, value in tensors.items():
        if "_proj." not in name and ".experts." not in name:
            packed[name] = plain[name] = value
            continue
        parts, numbers, weight = pack(value, random)
        off = max(off, float((numbers - weight).abs().max() / weight.abs().max()))
        packed |= {name.removesuffix("weight") + part: data.contiguous() for part, data in parts.items()}
        plain[name] = numbers.contiguous()
    for kind, stored, more in (("packed", packed, {"quantization_config": quantization}), ("plain", plain, {})):
        (folder / kind).mkdir(parents=True)
        save_file(stored, folder / kind / "model.safetensors", metadata={"format": "pt"})
        (folder / kind / "config.json").write_text(json.dumps(config | more))
    back = folder / "back"
    run(program, "convert", "--model", folder / "packed", "--to", "hf", "--out", back, "--no-check", "--no-tokenizer", "-q")
    read = {}
    for file in back.glob("*.safetensors"):
        read |= load_file(file)
    different = [name for name, value in plain.items()
                 if name not in read or not torch.equal(read[name].float(), value.float())]
    same = torch.equal(logits(program, folder / "packed", folder / "a"), logits(program, folder / "plain", folder / "b"))
    # The peer's own packing must have kept the weights, or nothing has been compared.
    good = not different and same and off < 1e-3
    failures += not good
    print(f"{title:50} {'equal' if good else 'DIFFERENT'} ({len(plain)} tensors{', ' + different[0] if different else ''}; "
          f"logits {'equal' if same else 'differ'}; packing off by {off:.0e})", flush=True)


def main():
    program, peers = sys.argv[1:]
    sys.path.insert(0, peers)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    gemm = without_their_parents(peers, "awq.modules.linear.gemm")
    packing = importlib.import_module("awq.utils.packing_utils")
    cuda = without_their_parents(peers, "auto_gptq.nn_modules.qlinear.qlinear_cuda")
    torch.manual_seed(1)
    model = MixtralForCausalLM(MixtralConfig(**SHAPE))
    config = json.loads(model.config.to_json_string()) | {"architectures": ["MixtralForCausalLM"]}
    tensors = plain_tensors(model)
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        for group in (32, 64):
            compare(program, f"AutoAWQ, groups of {group}", tensors, config, *awq(gemm, packing, group), scratch)
        for bits in (2, 4, 8):
            for group, in_order, symmetric in ((64, True, True), (32, True, False), (64, False, False), (-1, True, True)):
                title = f"AutoGPTQ, {bits} bits, {'a row' if group == -1 else f'groups of {group}'}"
                title += (", symmetric" if symmetric else "") + ("" if in_order else ", by activation")
                compare(program, title, tensors, config, *gptq(cuda, bits, group, in_order, symmetric), scratch)
    print("all agree" if failures == 0 else f"{failures} differ")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
