// What happens between the products: norms, rotary positions, the gated unit; forward and backward.
// Widths are multiples of 16. Sums over a row are made in float32, in one fixed order.
#pragma once

#include "product.h"

namespace lt {

// y = x · r ⊙ g with r = (mean x² + ε)^(-1/2).  x: (rows, width) float32 → y, and r (rows,) if wanted.
// stride: between the rows of x, where these are part of wider ones.
template <class T>
void rms_norm(const float* x, const float* g, float eps, long rows, long width, T* y, float* inverse, long stride = 0) {
    for (long r = 0; r < rows; r++, x += stride ? stride : width, y += width) {
        Lanes squares = zero();
        for (long c = 0; c < width; c += 16) squares = fma(load(x + c), load(x + c), squares);
        float scale = 1.0f / std::sqrt(sum(squares) / float(width) + eps);
        if (inverse) inverse[r] = scale;
        for (long c = 0; c < width; c += 16) store(y + c, load(x + c) * all(scale) * load(g + c));
    }
}

// ∂x += r (g ⊙ ∂y - x r² · mean(x ⊙ g ⊙ ∂y)),  ∂g += Σ ∂y ⊙ x r.  In the same pass, for the products that follow:
// y again, and the new ∂x, in pairs; ∂x in rows.  Each of the three may be null.  stride: of x and ∂x, as above.
template <class E>
void rms_norm_backward(const float* x, const float* g, const float* inverse, const float* dy, long rows, long width,
                       float* dx, float* dg, Word* y_pairs, typename E::Item* dx_rows, Word* dx_pairs, long stride = 0) {
    if (!stride) stride = width;
    for (long r = 0; r < rows; r++) {
        const float *xr = x + r * stride, *dyr = dy + r * width;
        float* dxr = dx + r * stride;
        Lanes scale = all(inverse[r]), along = zero();
        for (long c = 0; c < width; c += 16) along = fma(load(xr + c) * load(g + c), load(dyr + c), along);
        Lanes mean = all(sum(along) / float(width)) * scale * scale;
        for (long c = 0; c < width; c += 16) {
            Lanes v = load(xr + c), d = load(dyr + c);
            store(dg + c, fma(d, v * scale, load(dg + c)));
            Lanes out = fma(scale, load(g + c) * d - v * mean, load(dxr + c));
            store(dxr + c, out);
            if (dx_rows) store(dx_rows + r * width + c, out);
        }
        bool last = r + 1 == rows;
        if (r % E::per != E::per - 1 && !last) continue;
        long first = r / E::per * E::per, at = first / E::per * width;
        for (long c = 0; c < width; c += 16) {
            auto y = [&](long row) {
                return row < rows ? load(x + row * stride + c) * all(inverse[row]) * load(g + c) : zero();
            };
            auto d = [&](long row) { return row < rows ? load(dx + row * stride + c) : zero(); };
            if constexpr (E::per == 1) {
                if (y_pairs) store((float*)y_pairs + at + c, y(r));
                if (dx_pairs) store((float*)dx_pairs + at + c, d(r));
            } else {
                if (y_pairs) store(y_pairs + at + c, pair(y(first), y(first + 1)));
                if (dx_pairs) store(dx_pairs + at + c, pair(d(first), d(first + 1)));
            }
        }
    }
}

// Heads of ``width`` numbers whose halves are rotated: (a, b) → (a cos - b sin, b cos + a sin). Inverse: sign -1.
inline void rotate(const float* x, const float* cos, const float* sin, float sign, long width, float* y) {
    const long half = width / 2;
    if (width == 16) {
        float signs[16];
        for (int i = 0; i < 16; i++) signs[i] = i < 8 ? -sign : sign;
        Lanes v = load(x);
        return store(y, fma(swapped(v) * load(signs), load(sin), v * load(cos)));
    }
    long c = 0;
    for (; c + 16 <= half; c += 16) {
        Lanes a = load(x + c), b = load(x + half + c), turned = all(sign) * load(sin + c);
        store(y + c, a * load(cos + c) - b * turned);
        store(y + half + c, b * load(cos + c) + a * turned);
    }
    for (; c < half; c++) {
        const float a = x[c], b = x[half + c], turned = sign * sin[c];
        y[c] = a * cos[c] - b * turned;
        y[half + c] = b * cos[c] + a * turned;
    }
}

struct Heads {
    long queries, keys, width;  // numbers of heads, and the width of one
    long all() const { return (queries + 2 * keys) * width; }
    long turned() const { return queries + keys; }
};

// Normed if there are gains, rotated, and stored; values are only stored.  qkv: (rows, all) float32 → out.
template <class T>
void rotary(const float* qkv, Heads h, const float* q_gain, const float* k_gain, float eps, const float* cos,
            const float* sin, const int64_t* positions, long rows, T* out) {
    float normed[1024], turned[1024];
    for (long r = 0; r < rows; r++, qkv += h.all(), out += h.all()) {
        const float *c = cos + positions[r] * h.width, *s = sin + positions[r] * h.width;
        for (long head = 0; head < h.turned(); head++) {
            const float* x = qkv + head * h.width;
            const float* gain = head < h.queries ? q_gain : k_gain;
            if (gain) rms_norm(x, gain, eps, 1, h.width, normed, nullptr), x = normed;
            rotate(x, c, s, 1.0f, h.width, turned);
            for (long i = 0; i < h.width; i += 16) store(out + head * h.width + i, load(turned + i));
        }
        for (long i = h.turned() * h.width; i < h.all(); i += 16) store(out + i, load(qkv + i));
    }
}

// ∂qkv before the rotation, in place; from the norms' inputs ``qkv``, which are read only where there are gains.
// Then in rows and pairs.
template <class E>
void rotary_backward(float* d, const float* qkv, Heads h, const float* q_gain, const float* k_gain, float eps,
                     const float* cos, const float* sin, const int64_t* positions, long rows, float* dq_gain,
                     float* dk_gain, typename E::Item* d_rows, Word* d_pairs) {
    float turned[1024], normed[1024];
    for (long r = 0; r < rows; r++) {
        const float *c = cos + positions[r] * h.width, *s = sin + positions[r] * h.width;
        for (long head = 0; head < h.turned(); head++) {
            float* at = d + r * h.all() + head * h.width;
            rotate(at, c, s, -1.0f, h.width, turned);
            const float* gain = head < h.queries ? q_gain : k_gain;
            if (gain) {
                const float* x = qkv + r * h.all() + head * h.width;
                float inverse;
                rms_norm(x, gain, eps, 1, h.width, normed, &inverse);
                std::memset(at, 0, h.width * sizeof(float));
                rms_norm_backward<F32>(x, gain, &inverse, turned, 1, h.width, at, head < h.queries ? dq_gain : dk_gain,
                                       nullptr, nullptr, nullptr);
            } else {
                std::memcpy(at, turned, h.width * sizeof(float));
            }
        }
        const long first = r / E::per * E::per;
        if (r + 1 < rows && r + 1 < first + E::per) continue;
        to_rows<E>(d + first * h.all(), r + 1 - first, h.all(), h.all(), d_rows + first * h.all());
        to_pairs<E>(d + first * h.all(), r + 1 - first, h.all(), h.all(), d_pairs + first / E::per * h.all());
    }
}

// Heads of which only the last ``turned`` numbers are rotated, the first ``plain`` are stored as they are.
struct Tails {
    long heads, plain, turned;
    long head() const { return plain + turned; }
    long all() const { return heads * head(); }
};

// x: (rows, stride) float32, the heads from its first column on → y: (rows, wide), likewise. Backwards: sign -1.
template <class T>
void rotary_tails(const float* x, long stride, Tails h, const float* cos, const float* sin, const int64_t* positions,
                  float sign, long rows, T* y, long wide) {
    float turned[1024];
    for (long r = 0; r < rows; r++, x += stride, y += wide)
        for (long head = 0; head < h.heads; head++) {
            const float *from = x + head * h.head(), *at = cos + positions[r] * h.turned;
            T* to = y + head * h.head();
            for (long i = 0; i < h.plain; i += 16) store(to + i, load(from + i));
            rotate(from + h.plain, at, sin + positions[r] * h.turned, sign, h.turned, turned);
            for (long i = 0; i < h.turned; i += 16) store(to + h.plain + i, load(turned + i));
        }
}

// a = silu(g) u:  ∂g = ∂a u σ(g) (1 + g (1 - σ(g))),  ∂u = ∂a silu(g).  ``both``: panels of g and u in turn.
// → ∂both in rows and pairs, a in pairs.  weight (rows,): ∂a and a are multiplied with it, and Σ ∂a a is its gradient.
template <class E, bool WEIGHED = false>
void swiglu_backward(const typename E::Item* da, const typename E::Item* both, long rows, long width,
                     typename E::Item* d_rows, Word* d_pairs, Word* a_pairs, const float* weight = nullptr,
                     float* d_weight = nullptr) {
    struct Three { Lanes gate, up, a; };
    for (long r = 0; r < rows; r += E::per) {
        Lanes along[2] = {zero(), zero()};
        for (long c = 0; c < width; c += 16) {
            auto one = [&](long row) -> Three {
                if (row >= rows) return {zero(), zero(), zero()};
                const auto* at = both + row * 2 * width + 2 * c;
                Lanes g = load(at), u = load(at + 16), d = load(da + row * width + c);
                Lanes s = sigmoid(g), silu = g * s, a = silu * u;
                if constexpr (WEIGHED) {
                    along[row - r] = fma(d, a, along[row - r]);
                    d = d * all(weight[row]), a = a * all(weight[row]);
                }
                Three out{d * u * (s + silu * (all(1.0f) - s)), d * silu, a};
                store(d_rows + row * 2 * width + 2 * c, out.gate);
                store(d_rows + row * 2 * width + 2 * c + 16, out.up);
                return out;
            };
            Three x = one(r);
            long at = r / E::per * width + c, twice = r / E::per * 2 * width + 2 * c;
            if constexpr (E::per == 1) {
                store((float*)d_pairs + twice, x.gate);
                store((float*)d_pairs + twice + 16, x.up);
                store((float*)a_pairs + at, x.a);
            } else {
                Three y = one(r + 1);
                store(d_pairs + twice, pair(x.gate, y.gate));
                store(d_pairs + twice + 16, pair(x.up, y.up));
                store(a_pairs + at, pair(x.a, y.a));
            }
        }
        if constexpr (WEIGHED)
            for (long row = r; row < std::min(rows, r + E::per); row++) d_weight[row] = sum(along[row - r]);
    }
}

}  // namespace lt
