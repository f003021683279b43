/* Instances of a level's multiply_panel() for each layout and tile size; and of those functions of
 * panel_product.h, if the level has included it, that unpack a panel for many tiles.
 *
 * Before including this, the level defines multiply_panel(), and FOR_TILE_SIZES(DO, ...) as
 * DO(n, ...) for each of its sizes.
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

#ifdef PANEL_PRODUCT_H

#define TILE_MEMBER(n, ...) char rows_##n[n];
enum { LARGEST_TILE = sizeof(union {FOR_TILE_SIZES(TILE_MEMBER, )}) };

#define UNPACKED(name, bits, group, has_mins, super, is_iq4)                                       \
    name##_w##bits##_##group##_##has_mins##_##super##_##is_iq4

#define DEFINE_UNPACKED(...)                                                                       \
    static void UNPACKED(unpack, __VA_ARGS__)(const uint8_t *blocks, int64_t n_groups,             \
                                              uint8_t *to)                                         \
    {                                                                                              \
        unpack_groups(blocks, n_groups, (packed_layout){__VA_ARGS__}, to);                         \
    }                                                                                              \
    static void UNPACKED(multiply, __VA_ARGS__)(const unpacked_tile *operands)                     \
    {                                                                                              \
        multiply_unpacked(operands, LARGEST_TILE, (packed_layout){__VA_ARGS__});                   \
    }
FOR_LAYOUTS(DEFINE_UNPACKED)

#define NAME_UNPACKED(...)                                                                         \
    {PANELS_AT_ONCE, UNPACKED(unpack, __VA_ARGS__), UNPACKED(multiply, __VA_ARGS__)},
static const unpacked_product unpacked_products[] = {FOR_LAYOUTS(NAME_UNPACKED)};

#define UNPACKED_PRODUCTS .unpacked_products = unpacked_products
#else
#define UNPACKED_PRODUCTS .unpacked_products = NULL
#endif

/* The entries of a kernel_set for these. */
#define DOT_PRODUCTS                                                                               \
    .n_tile_sizes = N_TILE_SIZES, .tile_sizes = tile_sizes, .dot_products = dot_products,          \
    UNPACKED_PRODUCTS

#endif
