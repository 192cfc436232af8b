"""Subspaces of shifts against scikit-learn, scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA

from emscope.core.errors import InputError
from emscope.represent import subspaces


def rows(n=50, d=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.linspace(3, 0.2, d) + 1


def test_against_scikit_learns_pca():
    train, other = rows(), rows(20, seed=1)
    space = subspaces.principal_subspace(train, 4)
    pca = PCA(4).fit(train.numpy())
    assert space.variances.numpy() == pytest.approx(pca.explained_variance_)
    rebuilt = pca.inverse_transform(pca.transform(other.numpy()))
    x = other.numpy()
    inside = np.linalg.norm(rebuilt - pca.mean_, axis=1) / np.linalg.norm(x - pca.mean_, axis=1)
    assert subspaces.overlap(space, other).numpy() == pytest.approx(inside)
    left = 1 - ((x - rebuilt) ** 2).sum(1) / (x**2).sum(1)
    assert subspaces.explained(space, other).numpy() == pytest.approx(left)


def test_the_whole_space_holds_everything():
    train, other = rows(), rows(20, seed=1)
    space = subspaces.principal_subspace(train)
    assert space.rank == 12
    assert subspaces.overlap(space, other).numpy() == pytest.approx(1.0)
    assert subspaces.explained(space, other).numpy() == pytest.approx(1.0)
    covariance = EmpiricalCovariance().fit(train.numpy())
    expected = np.sqrt(covariance.mahalanobis(other.numpy()) * 49 / 50)  # ours divides by n - 1
    assert subspaces.mahalanobis(space, other).numpy() == pytest.approx(expected)


def test_a_random_subspace_holds_sqrt_k_over_d():
    space = subspaces.principal_subspace(rows(400, 300), 30)
    generator = torch.Generator().manual_seed(3)
    isotropic = torch.randn(500, 300, generator=generator, dtype=torch.float64) + space.mean
    drawn = subspaces.random_subspace(space, 0)
    assert torch.allclose(drawn.basis @ drawn.basis.T, torch.eye(30, dtype=torch.float64), atol=1e-12)
    assert float(subspaces.overlap(drawn, isotropic).mean()) == pytest.approx((30 / 300) ** 0.5, abs=0.01)


def test_principal_angles_equal_scipys():
    a, b = subspaces.principal_subspace(rows(), 3), subspaces.principal_subspace(rows(seed=5), 5)
    expected = np.sort(np.cos(subspace_angles(a.basis.T.numpy(), b.basis.T.numpy())))[::-1]
    assert subspaces.principal_angles(a, b).numpy() == pytest.approx(expected, abs=1e-9)


def test_similarity_is_a_cosine_and_leading_takes_the_first():
    train = rows()
    mean = train.mean(0)
    expected = (train @ mean) / (train.norm(dim=-1) * mean.norm())
    assert subspaces.similarity(train, mean).numpy() == pytest.approx(expected.numpy())
    whole, few = subspaces.principal_subspace(train), subspaces.principal_subspace(train, 3)
    assert torch.equal(whole.leading(3).basis, few.basis)


def test_bad_input():
    with pytest.raises(InputError, match="k is 9, but these rows span 4 directions"):
        subspaces.principal_subspace(rows(5), 9)
    with pytest.raises(InputError, match="1 prompts span no subspace"):
        subspaces.principal_subspace(rows(1))
    with pytest.raises(InputError, match="span 0 directions"):
        subspaces.principal_subspace(torch.ones(4, 3))
    with pytest.raises(InputError, match="k is 20"):
        subspaces.principal_subspace(rows()).leading(20)
    assert subspaces.overlap(subspaces.principal_subspace(rows(), 2), rows().mean(0)[None]).tolist() == [0.0]
