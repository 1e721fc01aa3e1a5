// Operations of step programs (ctorch_step_program.h) for mixers that look at the tokens before.
#pragma once
#include "ctorch_step_program.h"
CTORCH_BEGIN

/// Rows of keys and values, by number; -1 for none.
typedef int64_t ctorch_step_cache;

/// A cache of rows of `width` numbers. With `takes_tokens` it has a row for every token, as attention appends them: the `first`
/// ones stay, later ones share a ring of `room` rows, 0 for as many as there come. `count` tokens were there already, whose `keys`
/// and `values` [rows, width] are as far as they are still remembered. Without `takes_tokens` operations append rows to the
/// `count` that it begins with. `values` may be NULL: it has keys only.
ctorch_step_cache ctorch_step_new_cache(ctorch_step_program program, int64_t width, int64_t first, int64_t room, bool takes_tokens,
                                        int64_t count, ctorch_tensor keys, ctorch_tensor values, ctorch_error *error);

/// When a query at position i sees position j ≤ i: if i - j is a multiple of `size`, fewer than `count` of them; if j's block of
/// `size` is i's or one of the `count` before it; if j is among the last `count` of its block of `size`; if i or j is position
/// `size`; if j is the last of one of the blocks before i, whose lengths are the binary digits of i; if j is in the block that
/// ends with i, as long as the lowest binary digit of i + 1.
///
/// With positions in rows of `size`: if j is in the row before i's, in any column, in i's own, in another, or in a later one; if j
/// is in i's column, but not in the first row, and i is not in one of the last `count` columns; if j is in an earlier row, in the
/// column before i's.
enum {
  CTORCH_STEP_BAND,
  CTORCH_STEP_BLOCK,
  CTORCH_STEP_COLUMNS,
  CTORCH_STEP_TOKEN,
  CTORCH_STEP_DIGITS,
  CTORCH_STEP_LOWEST_DIGIT,
  CTORCH_STEP_ROW_ABOVE,
  CTORCH_STEP_OWN_ABOVE,
  CTORCH_STEP_OTHERS_ABOVE,
  CTORCH_STEP_RIGHT_ABOVE,
  CTORCH_STEP_COLUMN_BELOW_FIRST,
  CTORCH_STEP_COLUMN_LEFT
};
/// One way to choose rows of a cache that takes tokens, by its number; -1 for all rows of any cache.
typedef int64_t ctorch_step_look;
ctorch_step_look ctorch_step_new_look(ctorch_step_program program, ctorch_step_cache cache);
/// Lets heads h with h mod (number of choices) = `choice` see that, too.
void ctorch_step_see(ctorch_step_program program, ctorch_step_cache cache, ctorch_step_look look, int64_t choice, int32_t kind,
                     int64_t size, int64_t count);

/// Keys that go into the weights: q · key, and with `distances` also distance_q · (row n of `distances`) for the key that has n
/// younger ones.
typedef struct {
  ctorch_step_cache cache;
  ctorch_step_look look;
  ctorch_step_cache distances;
  ctorch_slot q, distance_q;
} ctorch_step_view;

enum { CTORCH_STEP_SOFTMAX_WEIGHTS, CTORCH_STEP_RELU_WEIGHTS };
enum { CTORCH_STEP_MOST_VIEWS = 4 };
/// y = Σ weight · value over all views, with softmax(scale · score) as weights, or relu(scale · score); 0 where nothing is seen. k
/// and v, if not -1, become the token's row of the first view's cache before.
void ctorch_step_attend(ctorch_step_program program, int64_t heads, int64_t head_dim, double scale, int32_t weights,
                        const ctorch_step_view *views, int64_t view_count, ctorch_slot k, ctorch_slot v, ctorch_slot y);

/// What is appended from here on is done only after every `period`-th token of the cache; 0: always, again.
void ctorch_step_set_period(ctorch_step_program program, ctorch_step_cache cache, int64_t period);
/// Appends a row to a cache: k and v, or k alone if v is -1.
void ctorch_step_remember(ctorch_step_program program, ctorch_step_cache cache, ctorch_slot k, ctorch_slot v);
/// k and v, or k alone if v is -1, become the present token's row of a cache.
void ctorch_step_replace(ctorch_step_program program, ctorch_step_cache cache, ctorch_slot k, ctorch_slot v);
enum { CTORCH_STEP_SUM, CTORCH_STEP_LARGEST, CTORCH_STEP_MEAN };
/// keys and values [width] = the pool of those of a cache that the look sees (its first choice), 0 of nothing; values may be -1.
void ctorch_step_pool(ctorch_step_program program, int32_t pool, ctorch_step_cache cache, ctorch_step_look look, ctorch_slot keys,
                      ctorch_slot values);
/// s and p become Σ softmax(logit) k and Σ softmax(logit) v over the tokens since the last `period`-th of the cache, at which they
/// are complete; in between they lack the division. Head h's logit is x[h · stride + offset]; z [2 heads] is the largest logit and
/// the sum of each head.
void ctorch_step_mix(ctorch_step_program program, ctorch_step_cache cache, int64_t period, int64_t heads, int64_t head_dim,
                     int64_t stride, int64_t offset, ctorch_slot x, ctorch_slot k, ctorch_slot v, ctorch_slot s, ctorch_slot p,
                     ctorch_slot z);
/// y = sin and cos, taking turns, of n times each frequency, float64 [⌈count / 2⌉], where n = (number of whole periods of the cache
/// - 1) · stride + offset.
void ctorch_step_distance_waves(ctorch_step_program program, ctorch_tensor frequencies, ctorch_step_cache cache, int64_t period,
                                int64_t stride, int64_t offset, int64_t count, ctorch_slot y, ctorch_error *error);

/// Features of each head's u [columns], with x [width] of which it is a projection: e^±u · e^-(b |x|² / 2 + a); cos u and sin u,
/// times a; the same and then b; u cos and u sin of the position times a, for positions below `limit`.
enum { CTORCH_STEP_POSITIVE, CTORCH_STEP_FOURIER, CTORCH_STEP_SMOOTHED_FOURIER, CTORCH_STEP_TURNED };
void ctorch_step_expand(ctorch_step_program program, int32_t kind, int64_t heads, int64_t width, int64_t columns, double a,
                        double b, int64_t limit, ctorch_slot x, ctorch_slot u, ctorch_slot y);

/// One token of ctorch_adaptive_momentum with elu + 1 features. s, p, u [heads, head_dim, head_dim], z [heads, head_dim] and begun
/// [heads] are slots with the state.
void ctorch_step_adaptive_momentum(ctorch_step_program program, int64_t heads, int64_t head_dim, double step_size, double maximum,
                                   double epsilon, ctorch_slot q, ctorch_slot k, ctorch_slot v, ctorch_slot s, ctorch_slot p,
                                   ctorch_slot u, ctorch_slot z, ctorch_slot begun, ctorch_slot y);

/// One token of features that weigh means of values, head by head: y = Σ_f softmax(q)_f s_f with s_f = Σ e^k_f v / Σ e^k_f over all
/// tokens. Slots with the state are s [heads, features, values], and Σ e^k_f as total · e^largest, [heads, features] each.
void ctorch_step_weighted_means(ctorch_step_program program, int64_t heads, int64_t features, int64_t values, ctorch_slot q,
                                ctorch_slot k, ctorch_slot v, ctorch_slot s, ctorch_slot largest, ctorch_slot total, ctorch_slot y);

CTORCH_END
