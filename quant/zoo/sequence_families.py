"""The sequence families of the zoo, (B, T, d_model) -> (B, T, d_model), at a tiny and at an odd size."""

from __future__ import annotations

from isobit.quant.zoo.deltanet import deltanet
from isobit.quant.zoo.family import Family
from isobit.quant.zoo.gated_deltanet import gated_deltanet
from isobit.quant.zoo.gla import gla
from isobit.quant.zoo.griffin import griffin
from isobit.quant.zoo.hedgehog import hedgehog
from isobit.quant.zoo.hgrn import HGRNBit
from isobit.quant.zoo.hybrid import hybrid
from isobit.quant.zoo.lightnet import lightnet
from isobit.quant.zoo.linear_attention import linear_transformer
from isobit.quant.zoo.lmu import lmu
from isobit.quant.zoo.mamba import MambaBlock, ResidualBlock
from isobit.quant.zoo.mamba2 import Mamba2
from isobit.quant.zoo.mingru import mingru
from isobit.quant.zoo.mom import mom
from isobit.quant.zoo.retnet import retnet
from isobit.quant.zoo.rnn import GRU, LSTM
from isobit.quant.zoo.rwkv4 import rwkv4
from isobit.quant.zoo.rwkv6 import rwkv6
from isobit.quant.zoo.rwkv7 import RWKV7, Ranks
from isobit.quant.zoo.s4d import s4d
from isobit.quant.zoo.transnormer import transnormer
from isobit.quant.zoo.xlstm import xlstm

SEQUENCE_FAMILIES: dict[str, Family] = {
    "Mamba": Family(
        "a selective state space (Gu and Dao, 2023)",
        lambda: ResidualBlock(16, MambaBlock(16, d_state=8)),
        lambda: ResidualBlock(21, MambaBlock(21, d_state=7, d_conv=3, expand=1, dt_rank=3)),
        ("T", 16),
        ("T", 21),
    ),
    "Mamba-2": Family(
        "state space duality: a scalar decay per head and step (Dao and Gu, 2024)",
        lambda: ResidualBlock(16, Mamba2(16, d_state=8, headdim=16)),
        lambda: ResidualBlock(21, Mamba2(21, d_state=7, d_conv=3, headdim=7, ngroups=3)),
        ("T", 16),
        ("T", 21),
    ),
    "RWKV-4": Family(
        "a weighted mean of values, in log-max form (Peng et al., 2023)",
        lambda: rwkv4(16, layers=2, d_hidden=32),
        lambda: rwkv4(21, layers=1, d_hidden=35),
        ("T", 16),
        ("T", 21),
    ),
    "RWKV-6": Family(
        "data-dependent mixing and decay, a bonus for the current step (Peng et al., Finch, 2024)",
        lambda: rwkv6(16, heads=2, layers=2, d_hidden=32, mix_rank=4, decay_rank=8),
        lambda: rwkv6(21, heads=3, layers=1, d_hidden=35, mix_rank=3, decay_rank=5),
        ("T", 16),
        ("T", 21),
    ),
    "RWKV-7": Family(
        "the generalised delta rule (Peng et al., Goose, 2025)",
        lambda: RWKV7(16, heads=2, layers=2, d_hidden=32, ranks=Ranks(w=4, a=4, v=4, g=8)),
        lambda: RWKV7(21, heads=3, layers=2, d_hidden=35, ranks=Ranks(w=3, a=5, v=3, g=7)),
        ("T", 16),
        ("T", 21),
    ),
    "RetNet": Family(
        "rotary positions and a constant decay per head (Sun et al., 2023)",
        lambda: retnet(16, heads=2, layers=1, d_hidden=32),
        lambda: retnet(42, heads=3, layers=1, d_hidden=35),
        ("T", 16),
        ("T", 42),
    ),
    "GLA": Family(
        "gated linear attention: a decay per key and step (Yang et al., 2023)",
        lambda: gla(16, heads=2, d_key=16, layers=1, d_hidden=32, gate_rank=4),
        lambda: gla(56, heads=7, d_key=21, layers=1, d_hidden=35, gate_rank=5),
        ("T", 16),
        ("T", 56),
    ),
    "DeltaNet": Family(
        "the delta rule on unit keys (Yang et al., 2024)",
        lambda: deltanet(16, heads=2, layers=1, d_hidden=32),
        lambda: deltanet(21, heads=3, layers=1, d_hidden=35, kernel=3),
        ("T", 16),
        ("T", 21),
    ),
    "Gated DeltaNet": Family(
        "the delta rule with a decay per head and step (Yang et al., 2024)",
        lambda: gated_deltanet(16, heads=2, head_dim=8, value_heads=2, layers=1, d_hidden=32),
        lambda: gated_deltanet(21, heads=3, head_dim=5, value_heads=6, layers=1, d_hidden=35, kernel=3),
        ("T", 16),
        ("T", 21),
    ),
    "HGRN": Family(
        "the MatMul-free LM's token and channel mixers, with full weights (Zhu et al., 2024)",
        lambda: HGRNBit(16, layers=2, d_hidden=32),
        lambda: HGRNBit(21, layers=2, d_hidden=35),
        ("T", 16),
        ("T", 21),
    ),
    "TransNormerLLM": Family(
        "Lightning Attention: a constant decay per head (Qin et al., 2023)",
        lambda: transnormer(16, heads=2, layers=2, d_hidden=32),
        lambda: transnormer(21, heads=3, layers=1, d_hidden=35),
        ("T", 16),
        ("T", 21),
    ),
    "Linear attention": Family(
        "features elu + 1, normalised, no decay (Katharopoulos et al., 2020)",
        lambda: linear_transformer(16, heads=2, layers=1, d_hidden=32),
        lambda: linear_transformer(21, heads=3, layers=1, d_hidden=35),
        ("T", 16),
        ("T", 21),
    ),
    "Hedgehog": Family(
        "softmax features, normalised, no decay (Zhang et al., 2024)",
        lambda: hedgehog(16, heads=2, layers=1, d_hidden=32),
        lambda: hedgehog(21, heads=3, layers=1, d_hidden=35),
        ("T", 16),
        ("T", 21),
    ),
    "LightNet": Family(
        "the additive recurrence: keys and decays from a running logsumexp (Qin et al., 2024)",
        lambda: lightnet(16, heads=2, layers=1, d_hidden=32, gate_rank=4),
        lambda: lightnet(21, heads=3, layers=1, d_hidden=35, gate_rank=5),
        ("T", 16),
        ("T", 21),
    ),
    "S4D": Family(
        "a diagonal state space with complex states (Gu et al., 2022)",
        lambda: s4d(16, layers=2, d_state=8),
        lambda: s4d(21, layers=1, d_state=7),
        ("T", 16),
        ("T", 21),
    ),
    "LMU": Family(
        "Legendre memory units: a dense constant recurrence (Chilkuri and Eliasmith, 2021)",
        lambda: lmu(16, layers=2, channels=2, order=8, theta=32.0),
        lambda: lmu(21, layers=1, channels=3, order=7, theta=21.0),
        ("T", 16),
        ("T", 21),
    ),
    "minGRU": Family(
        "convex gates that do not see the state (Feng et al., 2024)",
        lambda: mingru(16, layers=2, d_hidden=32),
        lambda: mingru(21, layers=1, d_hidden=35),
        ("T", 16),
        ("T", 21),
    ),
    "LSTM": Family(
        "long short-term memory (Hochreiter and Schmidhuber, 1997)",
        lambda: LSTM(16, 16, layers=2),
        lambda: LSTM(21, 35, layers=1),
        ("T", 16),
        ("T", 21),
    ),
    "GRU": Family(
        "gated recurrent units (Cho et al., 2014)",
        lambda: GRU(16, 16, layers=2),
        lambda: GRU(21, 35, layers=1),
        ("T", 16),
        ("T", 21),
    ),
    "xLSTM": Family(
        "one mLSTM block and one sLSTM block (Beck et al., 2024)",
        lambda: xlstm(16, heads=2, d_hidden=32),
        lambda: xlstm(21, heads=3, d_hidden=35, kernel=3, block=7),
        ("T", 16),
        ("T", 21),
    ),
    "RG-LRU": Family(
        "Griffin's gated linear recurrence after a causal convolution (De et al., 2024)",
        lambda: griffin(16, width=16, heads=2, layers=1, d_hidden=32),
        lambda: griffin(21, width=35, heads=7, layers=1, d_hidden=35, kernel=3),
        ("T", 16),
        ("T", 21),
    ),
    "MoM": Family(
        "top-k routing between memories of the gated delta rule (Du et al., 2025)",
        lambda: mom(16, heads=2, memories=4, topk=2, layers=1, d_hidden=32),
        lambda: mom(21, heads=3, memories=5, topk=2, layers=1, d_hidden=35),
        ("T", 16),
        ("T", 21),
    ),
    "Hybrid": Family(
        "a Mamba-2 block, then softmax attention on a sliding window (as Samba, Ren et al., 2024)",
        lambda: hybrid(16, d_state=8, headdim=16, heads=2, groups=1, window=16, d_hidden=32),
        lambda: hybrid(42, d_state=7, headdim=7, heads=3, groups=3, window=7, d_hidden=35, kernel=3),
        ("T", 16),
        ("T", 42),
    ),
}
