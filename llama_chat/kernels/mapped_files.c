/* Detection of mapped files that are truncated while they are in use.
 *
 * If a file is truncated, or its disk fails, the next access to a lost page raises SIGBUS, which
 * ends a program without a message. The handler here maps zeros in place of the lost pages, so that
 * the pass which reads them can finish, and sets a flag: results since then are wrong, and the
 * Python side refuses them.
 */

#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "compiler.h"

enum { MAX_MAPPINGS = 1024 };

typedef struct {
    _Atomic uintptr_t start, end;
} mapping;

/* The latest mappings; the slots of the oldest are reused. */
static mapping mappings[MAX_MAPPINGS];
static atomic_size_t n_mappings;

static atomic_int is_lost;
static struct sigaction other_handler;
static uintptr_t page_size;

/* Return the end of the mapping that has `address`; 0 if there is none. */
static uintptr_t end_of_mapping(uintptr_t address)
{
    for (int i = 0; i < MAX_MAPPINGS; i++)
        if (mappings[i].start <= address && address < mappings[i].end)
            return mappings[i].end;
    return 0;
}

/* All functions that are called here are async-signal-safe. */
static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)context;
    const uintptr_t address = (uintptr_t)info->si_addr, end = end_of_mapping(address);
    const uintptr_t page = address & ~(page_size - 1);
    if (end) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        if (mmap((void *)page, end - page, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED) {
            is_lost = 1;
            return;
        }
    }
    sigaction(number, &other_handler, NULL); /* the access is made again, and ends the program */
}

/* ---- called from Python --------------------------------------------------------------------- */

/* Map zeros in place of lost pages of a mapping from now on. Not thread-safe. */
EXPORT void watch_mapping(void *start, int64_t n_bytes)
{
    if (!page_size) {
        page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
        struct sigaction ours = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
        sigaction(SIGBUS, &ours, &other_handler);
    }
    mapping *taken = &mappings[n_mappings++ % MAX_MAPPINGS];
    taken->end = 0;
    taken->start = (uintptr_t)start;
    taken->end = (uintptr_t)start + (uintptr_t)n_bytes;
}

/* Return 1 if a page of a watched mapping was lost. */
EXPORT int has_lost_pages(void) { return is_lost; }
