/* Detection of mapped files that are truncated while they are in use.
 *
 * If a file is truncated, or its disk fails, the next access to a lost page raises SIGBUS, which
 * ends a program without a message. The handler here maps zeros in place of each lost page, so that
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

/* The watched mappings; the end of a free slot is 0. */
static mapping mappings[MAX_MAPPINGS];
static size_t n_taken_again;

static atomic_int is_lost;
static struct sigaction other_handler;
static uintptr_t page_size;

static int is_watched(uintptr_t address)
{
    for (int i = 0; i < MAX_MAPPINGS; i++)
        if (mappings[i].start <= address && address < mappings[i].end)
            return 1;
    return 0;
}

/* All functions that are called here are async-signal-safe. Only the page that is known to be lost is
 * replaced. */
static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)context;
    const uintptr_t address = (uintptr_t)info->si_addr;
    if (is_watched(address)) {
        void *page = (void *)(address & ~(page_size - 1));
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        if (mmap(page, page_size, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED) {
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
    mapping *taken = NULL;
    for (int i = 0; i < MAX_MAPPINGS && !taken; i++)
        if (!mappings[i].end)
            taken = &mappings[i];
    if (!taken)
        taken = &mappings[n_taken_again++ % MAX_MAPPINGS];
    taken->end = 0;
    taken->start = (uintptr_t)start;
    taken->end = (uintptr_t)start + (uintptr_t)n_bytes;
}

/* Forget a mapping that has ended, if it is watched; by one thread at a time. */
EXPORT void unwatch_mapping(void *start, int64_t n_bytes)
{
    const uintptr_t address = (uintptr_t)start;
    for (int i = 0; i < MAX_MAPPINGS; i++)
        if (mappings[i].start == address && mappings[i].end == address + (uintptr_t)n_bytes) {
            mappings[i].end = 0;
            return;
        }
}

/* Return 1 if a page of a watched mapping was lost. */
EXPORT int has_lost_pages(void) { return is_lost; }
