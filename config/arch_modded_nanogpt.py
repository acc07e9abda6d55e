"""modded-nanogpt (Jordan et al. 2024), the record of 2024-10-14 for 124M parameters: 123,568,128
parameters with its vocabulary of 50,304.

Differences: the record initializes matrices from a uniform distribution with a standard deviation
of 1/sqrt(3 n) for n inputs (0.0208 for 768), here from a normal distribution with 0.02; and in
bfloat16, its norms of queries and keys have a larger epsilon. It trains hidden matrices with Muon
and the embedding with AdamW, as `--optimizer=muon` does. Later records untie the embedding, and add
value residuals (`value_residual`), skip connections (`residual=unet`), windows and value
embeddings.
"""

arch_preset = "modded_nanogpt"
n_layer = 12
n_head = 6
n_embd = 768
block_size = 1024
