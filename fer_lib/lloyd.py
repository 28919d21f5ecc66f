"""k-means over the pixels of thousands of maps, each on its own: compiled for CPUs (numba) and GPUs (Triton).

    found = fit(maps, draws, lambda_=1.5, alpha=1.2, max_iter=10)     # None where neither can run: clustering.kmeans then does the same

A picture stays in the processor's cache, or in one Triton program, from its features to its last iteration; nothing of size pixels x clusters
is stored. Features, starts and updates are those of `clustering`, whose plain torch version is the reference of the tests: the same but for
ties of rounding (a few pixels in a map of a hundred).
"""
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

BLOCK = 384   # pixels worked on at a time on a CPU: eight rows of 48
LEAST = 512   # maps from which compiling pays on a CPU
FAR = 1e30    # farther than any distance


def fit(maps: torch.Tensor, draws: torch.Tensor, lambda_: float, alpha: float, max_iter: int):
    """Maps float (B, V, H, W) of one or two values a pixel, uniform numbers `draws` float (starts, K) for k-means++ -> labels uint8 (B, H*W), centres float (B, K, 2 + V),
    inertia float (B,), on the maps' device; or None: too few maps, or no compiler for where they lie."""
    kernel = (_triton() if maps.is_cuda else _numba()) if len(maps) >= LEAST or maps.is_cuda else None
    if kernel is None:
        return None
    maps, draws = maps.float().contiguous(), draws.to(maps.device, torch.float32).contiguous()
    b, v, h, w = maps.shape
    labels = torch.empty(b, h * w, dtype=torch.uint8, device=maps.device)
    centres, inertia = maps.new_empty(b, draws.shape[1], 2 + v), maps.new_empty(b)
    kernel(maps, draws, lambda_, alpha, max_iter, labels, centres, inertia)
    return labels, centres, inertia


@lru_cache
def _numba():
    """The kernel for CPUs, or None without numba."""
    try:
        import numba
        import numpy as np
    except ImportError:
        return None
    f32 = np.float32

    # no parallel loops: numba would change the number of threads that torch uses
    def kernel(maps, draws, lambda_, alpha, max_iter, labels, centres, inertia):
        size_b, size_v, height, width = maps.shape
        starts, size_k = draws.shape
        size_n, size_d, last = height * width, 2 + size_v, size_k - 1
        across, down = lambda_ / f32(max(width - 1, 1)), lambda_ / f32(max(height - 1, 1))
        for b in range(size_b):
            # features (D, N): place, and each map scaled to 0..alpha
            p = np.empty((size_d, size_n), f32)
            for i in range(height):
                xs, ys, level = p[0, i * width : (i + 1) * width], p[1, i * width : (i + 1) * width], down * f32(i)
                for j in range(width):
                    xs[j], ys[j] = across * f32(j), level
            for d in range(size_v):
                low, high = f32(FAR), f32(-FAR)
                for i in range(height):
                    line = maps[b, d, i]
                    for j in range(width):
                        low, high = min(low, line[j]), max(high, line[j])
                scale = alpha / max(high - low, f32(1e-12))
                for i in range(height):
                    line, to = maps[b, d, i], p[2 + d, i * width : (i + 1) * width]
                    for j in range(width):
                        to[j] = (line[j] - low) * scale
            total, square = np.zeros(size_d, f32), f32(0)
            for d in range(size_d):
                row, t, q = p[d], f32(0), f32(0)
                for n in range(size_n):
                    t += row[n]
                    q += row[n] * row[n]
                total[d] = t
                square += q
            c, s, count = np.empty((size_k, size_d), f32), np.empty((size_k, size_d), f32), np.empty(size_k, f32)
            old, near, gap = np.empty(size_n, f32), np.empty(size_n, f32), np.empty(size_n, f32)
            best, new = np.empty(BLOCK, f32), np.empty(BLOCK, f32)
            inertia[b] = f32(FAR)
            for start in range(starts):
                # k-means++ by inverse transform
                pick = min(int(draws[start, 0] * size_n), size_n - 1)
                for k in range(size_k):
                    if k > 0:
                        whole = f32(0)
                        for n in range(size_n):
                            whole += near[n]
                        want, run, pick = draws[start, k] * whole, f32(0), size_n - 1
                        for i in range(height):
                            line, part = near[i * width : (i + 1) * width], f32(0)
                            for j in range(width):
                                part += line[j]
                            if run + part > want:
                                pick = (i + 1) * width - 1
                                for j in range(width):
                                    run += line[j]
                                    if run > want:
                                        pick = i * width + j
                                        break
                                break
                            run += part
                    for d in range(size_d):
                        row, centre = p[d], p[d, pick]
                        c[k, d] = centre
                        if d == 0:
                            for n in range(size_n):
                                gap[n] = (row[n] - centre) * (row[n] - centre)
                        else:
                            for n in range(size_n):
                                gap[n] += (row[n] - centre) * (row[n] - centre)
                    if k == 0:
                        for n in range(size_n):
                            near[n] = gap[n]
                    else:
                        for n in range(size_n):
                            near[n] = min(near[n], gap[n])
                for n in range(size_n):
                    old[n] = f32(-1)
                # Lloyd: |c|^2 - 2 c.x of each cluster, the least so far kept; the last cluster's sums are what the others leave
                error = f32(0)
                for step in range(max_iter + 1):
                    s[:], count[:] = f32(0), f32(0)
                    moved, error = f32(0), square
                    for at in range(0, size_n, BLOCK):
                        m = min(BLOCK, size_n - at)
                        was = old[at : at + m]
                        for k in range(size_k):
                            own = f32(k)
                            base = f32(0)
                            for d in range(size_d):
                                base += c[k, d] * c[k, d]
                            x, y, v = p[0, at : at + m], p[1, at : at + m], p[2, at : at + m]
                            cx, cy, cv = f32(-2) * c[k, 0], f32(-2) * c[k, 1], f32(-2) * c[k, 2]
                            for n in range(m):
                                gap[n] = base + cx * x[n] + cy * y[n] + cv * v[n]
                            for d in range(3, size_d):
                                more, cm = p[d, at : at + m], f32(-2) * c[k, d]
                                for n in range(m):
                                    gap[n] += cm * more[n]
                            if k == 0:
                                for n in range(m):
                                    best[n], new[n] = gap[n], own
                            else:
                                for n in range(m):
                                    closer = gap[n] < best[n]
                                    best[n] = gap[n] if closer else best[n]
                                    new[n] = own if closer else new[n]
                        changes, part = f32(0), f32(0)
                        for n in range(m):
                            changes += f32(1) if new[n] != was[n] else f32(0)
                            part += best[n]
                            was[n] = new[n]
                        moved += changes
                        error += part
                        for k in range(last):
                            own, t = f32(k), f32(0)
                            for n in range(m):
                                t += f32(1) if new[n] == own else f32(0)
                            count[k] += t
                            for d in range(size_d):
                                row, t = p[d, at : at + m], f32(0)
                                for n in range(m):
                                    t += row[n] if new[n] == own else f32(0)
                                s[k, d] += t
                    if moved == 0 or step == max_iter:
                        break
                    count[last] = f32(size_n)
                    for d in range(size_d):
                        s[last, d] = total[d]
                    for k in range(last):
                        count[last] -= count[k]
                        for d in range(size_d):
                            s[last, d] -= s[k, d]
                    for k in range(size_k):
                        if count[k] > 0:
                            for d in range(size_d):
                                c[k, d] = s[k, d] / count[k]
                if error < inertia[b]:
                    inertia[b] = error
                    centres[b] = c
                    for n in range(size_n):
                        labels[b, n] = np.uint8(old[n])

    try:
        kernel = numba.njit(kernel, nogil=True, fastmath=True, cache=True)
    except RuntimeError:  # nowhere to keep what is compiled
        kernel = numba.njit(kernel, nogil=True, fastmath=True)

    def run(maps, draws, lambda_, alpha, max_iter, *out):
        threads, draws = torch.get_num_threads(), draws.numpy()
        parts = zip(*(np.array_split(array.numpy(), threads) for array in (maps, *out)))
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: kernel(part[0], draws, f32(lambda_), f32(alpha), max_iter, *part[1:]), parts))

    return run


@lru_cache
def _triton():
    """The kernel for GPUs, one program a picture, or None without Triton or a C compiler."""
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))):  # Triton starts kernels through C
        return None

    @triton.jit
    def kernel(maps, draws, labels, centres, inertia, lambda_, alpha, max_iter, starts, V: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
               K: tl.constexpr, N: tl.constexpr, PIXELS: tl.constexpr, SLOTS: tl.constexpr, FAR: tl.constexpr):
        b = tl.program_id(0)
        n = tl.arange(0, PIXELS)
        real = n < N
        x = tl.where(real, (n % W).to(tl.float32) * lambda_ / (W - 1), 0.0)
        y = tl.where(real, (n // W).to(tl.float32) * lambda_ / (H - 1), 0.0)
        v = tl.load(maps + b * V * N + n, real, 0.0)
        low, high = tl.min(tl.where(real, v, FAR)), tl.max(tl.where(real, v, -FAR))
        v = tl.where(real, (v - low) * alpha / tl.maximum(high - low, 1e-12), 0.0)
        w = tl.zeros((PIXELS,), tl.float32)  # the second map, where there is one
        if V == 2:
            w = tl.load(maps + b * V * N + N + n, real, 0.0)
            low, high = tl.min(tl.where(real, w, FAR)), tl.max(tl.where(real, w, -FAR))
            w = tl.where(real, (w - low) * alpha / tl.maximum(high - low, 1e-12), 0.0)
        square = tl.sum(x * x + y * y + v * v + w * w)
        k_ = tl.arange(0, SLOTS)
        least = tl.full((), FAR, tl.float32)
        for start in range(starts):
            cx, cy, cv, cw = (tl.zeros((SLOTS,), tl.float32), tl.zeros((SLOTS,), tl.float32), tl.zeros((SLOTS,), tl.float32),
                              tl.zeros((SLOTS,), tl.float32))
            near = tl.zeros((PIXELS,), tl.float32)
            for k in tl.static_range(K):  # k-means++ by inverse transform
                u = tl.load(draws + start * K + k)
                if k == 0:
                    pick = tl.minimum((u * N).to(tl.int32), N - 1)
                else:
                    run = tl.cumsum(near, 0)
                    pick = tl.minimum(tl.sum(tl.where(real & (run <= u * tl.sum(near)), 1, 0)), N - 1)
                here = n == pick
                px, py, pv, pw = (tl.sum(tl.where(here, x, 0.0)), tl.sum(tl.where(here, y, 0.0)), tl.sum(tl.where(here, v, 0.0)),
                                  tl.sum(tl.where(here, w, 0.0)))
                cx, cy, cv, cw = (tl.where(k_ == k, px, cx), tl.where(k_ == k, py, cy), tl.where(k_ == k, pv, cv), tl.where(k_ == k, pw, cw))
                gap = (x - px) * (x - px) + (y - py) * (y - py) + (v - pv) * (v - pv) + (w - pw) * (w - pw)
                near = tl.where(real, gap if k == 0 else tl.minimum(near, gap), 0.0)
            old = tl.full((PIXELS,), -1, tl.int32)
            error = tl.full((), FAR, tl.float32)
            moved, step = 1, 0
            while moved > 0:  # Lloyd: |c|^2 - 2 c.x of each cluster, the least so far kept
                best, new = tl.full((PIXELS,), FAR, tl.float32), tl.zeros((PIXELS,), tl.int32)
                for k in tl.static_range(K):
                    px, py, pv, pw = (tl.sum(tl.where(k_ == k, cx, 0.0)), tl.sum(tl.where(k_ == k, cy, 0.0)),
                                      tl.sum(tl.where(k_ == k, cv, 0.0)), tl.sum(tl.where(k_ == k, cw, 0.0)))
                    score = px * px + py * py + pv * pv + pw * pw - 2 * (px * x + py * y + pv * v + pw * w)
                    new = tl.where(score < best, k, new)
                    best = tl.minimum(score, best)
                error = square + tl.sum(tl.where(real, best, 0.0))
                moved = tl.sum(tl.where(real & (new != old), 1, 0))
                moved = tl.where(step == max_iter, 0, moved)
                old = new
                if moved > 0:
                    for k in tl.static_range(K):
                        own = tl.where(real & (new == k), 1.0, 0.0)
                        count = tl.sum(own)
                        mine = tl.where(k_ == k, count, 0.0) > 0
                        count = tl.maximum(count, 1.0)
                        cx, cy = tl.where(mine, tl.sum(own * x) / count, cx), tl.where(mine, tl.sum(own * y) / count, cy)
                        cv, cw = tl.where(mine, tl.sum(own * v) / count, cv), tl.where(mine, tl.sum(own * w) / count, cw)
                step += 1
            if error < least:
                least = error
                tl.store(labels + b * N + n, old.to(tl.uint8), real)
                to = centres + (b * K + k_) * (2 + V)
                tl.store(to, cx, k_ < K)
                tl.store(to + 1, cy, k_ < K)
                tl.store(to + 2, cv, k_ < K)
                if V == 2:
                    tl.store(to + 3, cw, k_ < K)
        tl.store(inertia + b, least)

    def run(maps, draws, lambda_, alpha, max_iter, labels, centres, inertia):
        b, v, h, w = maps.shape
        starts, k = draws.shape
        kernel[(b,)](maps, draws, labels, centres, inertia, lambda_, alpha, max_iter, starts, V=v, H=h, W=w, K=k, N=h * w,
                     PIXELS=triton.next_power_of_2(h * w), SLOTS=triton.next_power_of_2(k), FAR=FAR, num_warps=8)

    return run
