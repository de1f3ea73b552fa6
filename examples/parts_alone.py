"""An optimizer and a loss of the stock in plain PyTorch: nothing else of repertory takes part."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from repertory.losses import SoftTripleLoss
from repertory.optim import Lion

digits = load_digits()
inputs = torch.from_numpy(digits.data).float() / 16
targets = torch.from_numpy(digits.target)
train, test = slice(0, 1200), slice(1200, None)

torch.manual_seed(0)
embed = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
criterion = SoftTripleLoss(outputs=10, dim=16, centers=3)
optimizer = Lion(
    [{"params": embed.parameters(), "lr": 1e-3}, {"params": criterion.parameters(), "lr": 1e-2}], weight_decay=0.01
)
for _ in range(10):
    for index in torch.randperm(1200).split(64):
        loss = criterion(embed(inputs[train][index]), targets[train][index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# An embedding is used by looking for the nearest neighbour.
with torch.no_grad():
    known, asked = (nn.functional.normalize(embed(inputs[part])) for part in (train, test))
nearest = (asked @ known.T).argmax(1)
found = (targets[train][nearest] == targets[test]).float().mean()
print(f"the nearest neighbour is of the right class for {found:.1%} of {len(asked)} test digits")
