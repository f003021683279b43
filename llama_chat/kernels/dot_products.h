/* Instances of a level's multiply_panel() for each layout and tile size.
 *
 * Before including this, the level defines that function, and FOR_TILE_SIZES(DO, ...) as DO(n, ...)
 * for each of its sizes.
 */

#ifndef DOT_PRODUCTS_H
#define DOT_PRODUCTS_H

#include "kernel_set.h"

#define DOT_PRODUCT(n, bits, group, has_mins, super, is_iq4)                                       \
    dot_product_w##bits##_##group##_##has_mins##_##super##_##is_iq4##_##n

#define DEFINE_DOT_PRODUCT(n, bits, group, has_mins, super, is_iq4)                                \
    static void DOT_PRODUCT(n, bits, group, has_mins, super, is_iq4)(                              \
        const uint8_t *panel, int64_t n_groups, const uint8_t *tile, float *out,                   \
        int64_t out_stride)                                                                        \
    {                                                                                              \
        multiply_panel(panel, n_groups, tile, out, out_stride,                                     \
                       (packed_layout){bits, group, has_mins, super, is_iq4}, n);                  \
    }
#define DEFINE_DOT_PRODUCTS(...) FOR_TILE_SIZES(DEFINE_DOT_PRODUCT, __VA_ARGS__)
FOR_LAYOUTS(DEFINE_DOT_PRODUCTS)

#define NAME_DOT_PRODUCT(n, bits, group, has_mins, super, is_iq4)                                  \
    DOT_PRODUCT(n, bits, group, has_mins, super, is_iq4),
#define NAME_DOT_PRODUCTS(...) FOR_TILE_SIZES(NAME_DOT_PRODUCT, __VA_ARGS__)
static dot_product *const dot_products[] = {FOR_LAYOUTS(NAME_DOT_PRODUCTS)};

#define CHECK_TILE_SIZE(n, ...) _Static_assert((n) <= MAX_TILE, "a tile larger than MAX_TILE");
FOR_TILE_SIZES(CHECK_TILE_SIZE, )

#define NAME_TILE_SIZE(n, ...) n,
static const int tile_sizes[] = {FOR_TILE_SIZES(NAME_TILE_SIZE, )};
enum { N_TILE_SIZES = sizeof tile_sizes / sizeof *tile_sizes };

/* The entries of a kernel_set for these. */
#define DOT_PRODUCTS                                                                               \
    .n_tile_sizes = N_TILE_SIZES, .tile_sizes = tile_sizes, .dot_products = dot_products

#endif
