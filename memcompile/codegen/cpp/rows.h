// Rows of images on their way through convolutions: what generated kernels are made of.
//
// A row is [pixels][STEP] floats, its channels innermost; STEP is a multiple of LANES where vectors are read from it. Geometry
// comes as a struct G of constants:
//   KH, KW   taps down and across        S, DW   stride and dilation across: down, they are in the pointers to rows
//   C        channels that are read      STEP    floats from a pixel that is read to the next one
//   V        vectors of channels that come out
// ``finish(pixel, vector, sum)`` gets each sum once, applies what is pointwise, and stores it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <omp.h>

namespace {

constexpr int LANES = 16;
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef float Loose __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

// Sums that registers hold at a time, and of how many vectors next to each other: weights and a pixel's value need registers too.
#if defined(__AVX512F__)
constexpr int SUMS = 24, ABREAST = 3;
#else
constexpr int SUMS = 6, ABREAST = 1;
#endif

inline Vector load(const float *from) { return *reinterpret_cast<const Loose *>(from); }
inline void store(float *to, Vector value) { *reinterpret_cast<Loose *>(to) = value; }

// Vector ``vector`` of a pixel of ``CHANNELS`` channels that lie close to the next pixel's.
template <int CHANNELS> inline Vector load_some(const float *pixel, int vector) {
  if (CHANNELS % LANES == 0 || vector < CHANNELS / LANES) return load(pixel + vector * LANES);
  Vector value = {};
  std::memcpy(&value, pixel + vector * LANES, CHANNELS % LANES * sizeof(float));
  return value;
}
template <int CHANNELS> inline void store_some(float *pixel, int vector, Vector value) {
  if (CHANNELS % LANES == 0 || vector < CHANNELS / LANES) store(pixel + vector * LANES, value);
  else std::memcpy(pixel + vector * LANES, &value, CHANNELS % LANES * sizeof(float));
}

// --- rows ---

// ``all`` things in as few groups as hold ``most`` each: ``wide`` groups of SIZE, the others of SIZE - 1.
template <int all, int most> struct Groups {
  static constexpr int count = (all + most - 1) / most, SIZE = (all + count - 1) / count, wide = all - count * (SIZE - 1);
};

// The last CAPACITY rows of an image of HEIGHT rows, each with LEFT zeros in front, PIXELS in all.
template <int HEIGHT, int LEFT, int PIXELS, int STEP, int CAPACITY> struct Ring {
  float *base;
  const float *zeros;
  static constexpr int64_t ROW = int64_t(PIXELS) * STEP;
  float *row(int y) const { return base + y % CAPACITY * ROW; }
  float *pixels(int y) const { return row(y) + LEFT * STEP; }
  void clear() const { std::memset(base, 0, CAPACITY * ROW * sizeof(float)); }
  template <int KH> void window(const float **rows, int first, int apart) const {
    for (int i = 0; i < KH; ++i) {
      const int y = first + i * apart;
      rows[i] = y >= 0 && y < HEIGHT ? row(y) : zeros;
    }
  }
};

template <int CHANNELS, int PIXELS, int STEP>
inline void copy_row(float *to, const float *from, int64_t pixel, int64_t channel) {
  for (int p = 0; p < PIXELS; ++p)
    for (int c = 0; c < CHANNELS; ++c) to[p * STEP + c] = from[p * pixel + c * channel];
}

// --- convolutions ---

// Of all channels: P pixels x N vectors of sums in registers, over the taps and the channels.
template <class G, int P, int N, class Finish>
inline __attribute__((always_inline)) void dense_block(const float *const *rows, const float *weights, int pixel, int vector,
                                                       Finish &&finish) {
  Vector sums[P][N] = {};
  for (int i = 0; i < G::KH; ++i)
    for (int j = 0; j < G::KW; ++j) {
      const float *at = rows[i] + (int64_t(pixel) * G::S + j * G::DW) * G::STEP;
      for (int c = 0; c < G::C; ++c, weights += N * LANES) {
        Vector w[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) w[n] = load(weights + n * LANES);
#pragma GCC unroll 32
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) sums[p][n] += at[p * G::S * G::STEP + c] * w[n];
        }
      }
    }
#pragma GCC unroll 32
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) finish(pixel + p, vector + n, sums[p][n]);
  }
}

// The first ``wide`` panels of weights hold SIZE vectors, the others one less.
template <class G> using Panels = Groups<G::V, ABREAST>;
template <class G, int WIDTH> using Tiles = Groups<WIDTH, SUMS / Panels<G>::SIZE>;

template <class G, int P, class Finish>
inline void dense_tile(const float *const *rows, const float *weights, int pixel, Finish &&finish) {
  constexpr int N = Panels<G>::SIZE, depth = G::KH * G::KW * G::C * LANES;
  int vector = 0;
  for (int panel = 0; panel < Panels<G>::wide; ++panel, vector += N, weights += depth * N)
    dense_block<G, P, N>(rows, weights, pixel, vector, finish);
  if constexpr (N > 1)
    for (; vector < G::V; vector += N - 1, weights += depth * (N - 1))
      dense_block<G, P, N - 1>(rows, weights, pixel, vector, finish);
}

// ``body(count, pixel)`` for each tile of a row of WIDTH pixels; ``count``: of its pixels, a constant.
template <class G, int WIDTH, class Body> inline void tiles(Body &&body) {
  using Split = Tiles<G, WIDTH>;
  int pixel = 0;
  for (int tile = 0; tile < Split::wide; ++tile, pixel += Split::SIZE) body(std::integral_constant<int, Split::SIZE>(), pixel);
  if constexpr (Split::SIZE > 1)
    for (; pixel < WIDTH; pixel += Split::SIZE - 1) body(std::integral_constant<int, Split::SIZE - 1>(), pixel);
}

// A row, panel by panel: a panel stays in the cache while all pixels pass by.
template <class G, int WIDTH, class Finish>
inline void dense_row(const float *const *rows, const float *weights, Finish &&finish) {
  constexpr int N = Panels<G>::SIZE, depth = G::KH * G::KW * G::C * LANES;
  int vector = 0;
  for (int panel = 0; panel < Panels<G>::wide; ++panel, vector += N, weights += depth * N)
    tiles<G, WIDTH>([&](auto count, int pixel) { dense_block<G, count, N>(rows, weights, pixel, vector, finish); });
  if constexpr (N > 1)
    for (; vector < G::V; vector += N - 1, weights += depth * (N - 1))
      tiles<G, WIDTH>([&](auto count, int pixel) { dense_block<G, count, N - 1>(rows, weights, pixel, vector, finish); });
}

// Of each channel for itself: P pixels of one vector of channels at a time.
template <class G, int P, class Finish>
inline void depthwise_tile(const float *const *rows, const float *weights, int pixel, Finish &&finish) {
  for (int vector = 0; vector < G::V; ++vector) {
    Vector sums[P] = {};
    const float *w = weights + vector * LANES;
    for (int i = 0; i < G::KH; ++i) {
      const float *at = rows[i] + int64_t(pixel) * G::S * G::STEP + vector * LANES;
#pragma GCC unroll 8
      for (int j = 0; j < G::KW; ++j, w += G::V * LANES) {
        const Vector tap = load(w);
#pragma GCC unroll 32
        for (int p = 0; p < P; ++p) sums[p] += tap * load(at + (p * G::S + j * G::DW) * G::STEP);
      }
    }
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p) finish(p, vector, sums[p]);
  }
}

// --- weights ---

// [channels out][C][KH][KW] with strides -> panels [tap, C][vectors of the panel], zeros beyond the channels; every
// ``parts``-th panel from ``part`` on.
template <class G, int CHANNELS>
void pack_dense(float *to, const float *from, int64_t out, int64_t in, int64_t down, int64_t across, int part, int parts) {
  constexpr int depth = G::KH * G::KW * G::C;
  for (int panel = 0, first = 0; panel < Panels<G>::count; ++panel) {
    const int width = (Panels<G>::SIZE - (panel >= Panels<G>::wide)) * LANES;
    if (panel % parts == part)
      for (int n = 0; n < width; ++n) {
        const float *channel = from + (first + n) * out;
        float *column = to + int64_t(first) * depth + n;
        for (int i = 0; i < G::KH; ++i)
          for (int j = 0; j < G::KW; ++j)
            for (int c = 0; c < G::C; ++c, column += width)
              *column = first + n < CHANNELS ? channel[i * down + j * across + c * in] : 0.0f;
      }
    first += width;
  }
}

// [channels][1][KH][KW] with strides -> [tap][channels], zeros beyond the channels.
template <class G, int CHANNELS>
void pack_depthwise(float *to, const float *from, int64_t channel, int64_t down, int64_t across) {
  for (int i = 0; i < G::KH; ++i)
    for (int j = 0; j < G::KW; ++j)
      for (int c = 0; c < G::V * LANES; ++c)
        *to++ = c < CHANNELS ? from[c * channel + i * down + j * across] : 0.0f;
}

// --- pointwise: of vectors and of single floats ---

template <class A, class B> using Wider = std::conditional_t<std::is_same_v<A, Vector> || std::is_same_v<B, Vector>, Vector, float>;

template <class C, class A, class B> inline auto where(C condition, A a, B b) {
  if constexpr (std::is_same_v<C, bool>) return condition ? a : b;
  else return condition ? Vector{} + a : Vector{} + b;
}
template <class T> inline T relu(T x) { return where(x < 0.0f, T{}, x); }
template <class T, class L> inline T clamp_min(T x, L low) { return where(x < low, T{} + low, x); }
template <class T, class H> inline T clamp_max(T x, H high) { return where(x > high, T{} + high, x); }
template <class T, class L, class H> inline T clamp(T x, L low, H high) { return clamp_max(clamp_min(x, low), high); }
template <class T> inline T hardsigmoid(T x) { return clamp(x + 3.0f, 0.0f, 6.0f) / 6.0f; }
template <class T> inline T hardswish(T x) { return x * clamp(x + 3.0f, 0.0f, 6.0f) / 6.0f; }
template <class T> inline T leaky_relu(T x, float slope) { return where(x > 0.0f, x, x * slope); }
// A nan on either side is the result.
template <class A, class B> inline auto minimum(A left, B right) {
  const Wider<A, B> a = Wider<A, B>{} + left, b = Wider<A, B>{} + right;
  return where(a < b, a, where(a != a, a, b));
}
template <class A, class B> inline auto maximum(A left, B right) {
  const Wider<A, B> a = Wider<A, B>{} + left, b = Wider<A, B>{} + right;
  return where(a > b, a, where(a != a, a, b));
}

inline float square_root(float x) { return std::sqrt(x); }
inline Vector square_root(Vector x) {
  for (int lane = 0; lane < LANES; ++lane) x[lane] = std::sqrt(x[lane]);
  return x;
}
template <class T> inline T absolute(T x) { return where(x < 0.0f, -x, x); }

// exp: 2^n * e^r with |r| <= ln(2) / 2, and a polynomial for e^r (Cephes; within 2 ulp).
inline float exponential(float x) { return std::exp(x); }
inline Vector exponential(Vector x) {
  typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(float))));
  const Vector bounded = clamp(x, -87.3f, 88.7f);
  const Vector scaled = bounded * 1.44269504088896341f;
  const Integers n = __builtin_convertvector(where(scaled < 0.0f, scaled - 0.5f, scaled + 0.5f), Integers);
  const Vector whole = __builtin_convertvector(n, Vector);
  const Vector r = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vector y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const Integers half = n / 2, bits = (half + 127) << 23, rest = (n - half + 127) << 23;
  Vector one, other;
  std::memcpy(&one, &bits, sizeof one);
  std::memcpy(&other, &rest, sizeof other);
  y = y * one * other;
  y = where(x < -103.0f, Vector{}, where(x > 88.7f, Vector{} + std::numeric_limits<float>::infinity(), y));
  return where(x != x, x, y);
}
template <class T> inline T sigmoid(T x) { return 1.0f / (1.0f + exponential(-x)); }
template <class T> inline T silu(T x) { return x / (1.0f + exponential(-x)); }

}  // namespace
