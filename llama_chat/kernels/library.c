/* Description of the library, with which Python checks its compatibility. */

#include <stdarg.h>
#include <stdio.h>

#include "cpu.h"
#include "forward.h"
#include "panels.h"

/* Version of the interface, raised by changes that alter no struct size; ABI in abi.py. */
enum { ABI = 9 };

/* Structs that are mirrored in Python. */
#define FOR_STRUCTS(STRUCT)                                                                        \
    STRUCT(packed_layout)                                                                          \
    STRUCT(matrix)                                                                                 \
    STRUCT(tensor_view)                                                                            \
    STRUCT(unpacked_matrix)                                                                        \
    STRUCT(layer_weights)                                                                          \
    STRUCT(model_weights)                                                                          \
    STRUCT(cache_segment)                                                                          \
    STRUCT(kv_cache)                                                                               \
    STRUCT(pass_record)

typedef struct {
    char *next;
    int64_t left;
} text_buffer;

__attribute__((format(printf, 2, 3))) static void append(text_buffer *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int64_t written = vsnprintf(text->next, (size_t)text->left, format, arguments);
    va_end(arguments);
    written = written < text->left ? written : text->left - 1;
    text->next += written;
    text->left -= written;
}

static void append_level(text_buffer *to, const char *separator, int level)
{
    const kernel_set kernels = kernels_of(level);
    append(to, "%s\"%s\": {\"is_supported\": %s, \"is_slow\": %s, \"tile_sizes\": [", separator,
           kernels.name, level_is_supported(level) ? "true" : "false",
           level_is_slow(level) ? "true" : "false");
    for (int i = 0; i < kernels.n_tile_sizes; i++)
        append(to, "%s%d", i ? ", " : "", kernels.tile_sizes[i]);
    append(to, "]}");
}

/* ---- called from Python --------------------------------------------------------------------- */

/* Write a JSON object into `text`: the version of the interface, constants, the sizes of structs,
 * and all levels in the order of their numbers. */
EXPORT void describe_library(char *text, int64_t size)
{
    text_buffer to = {text, size};
    append(&to, "{\"abi\": %d, \"panel\": %d", ABI, PANEL);
    append(&to, ", \"max_exact_batch\": %d", MAX_EXACT_BATCH);
    append(&to, ", \"has_openmp\": %s", has_openmp() ? "true" : "false");
    const char *separator = ", \"structs\": {";
#define APPEND_SIZE(name)                                                                          \
    append(&to, "%s\"" #name "\": %zu", separator, sizeof(name));                                  \
    separator = ", ";
    FOR_STRUCTS(APPEND_SIZE)
    separator = "}, \"levels\": {";
    for (int level = 0; level < n_levels(); level++, separator = ", ")
        append_level(&to, separator, level);
    append(&to, "}}");
}
