/* Teams of threads. */

#include "threads.h"

#ifdef _OPENMP

/* Declared here because Apple's compiler has OpenMP without its header. */
int omp_get_thread_num(void);
int omp_get_num_threads(void);

int has_openmp(void) { return 1; }

void run_team(int n_threads, team_function *function, void *argument)
{
#pragma omp parallel num_threads(n_threads)
    function((team_member){omp_get_thread_num(), omp_get_num_threads()}, argument);
}

void wait_for_team(void)
{
#pragma omp barrier
}

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

/* Spins of a waiting thread before it sleeps, about two milliseconds: longer than a barrier, and
 * than the work between two tokens. It yields now and then, perhaps to a thread that it waits
 * for. */
enum { MAX_SPINS = 1 << 16, SPINS_PER_YIELD = 1 << 7 };

enum { STACK_BYTES = 1 << 20 };

/* A counter that threads wait for. */
typedef struct {
    _Alignas(CACHE_LINE) atomic_uint value;
    atomic_int n_asleep;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} signal_counter;

/* Threads that one caller at a time uses; kept for the next one, and never ended. */
typedef struct team {
    signal_counter begun;    /* calls of run_team() */
    signal_counter barriers; /* that all members have reached */
    _Alignas(CACHE_LINE) atomic_int n_waiting;
    int n_wanted, n_members; /* threads asked for and there, with the caller's */
    atomic_int n_named;      /* threads that know their index */
    team_function *function;
    void *argument;
    struct team *next_idle;
} team;

static pthread_mutex_t idle_mutex = PTHREAD_MUTEX_INITIALIZER;
static team *idle_teams;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Thread_local team *current_team; /* of several members; NULL outside of run_team() */

int has_openmp(void) { return 0; }

INLINE void spin(void)
{
#if X86
    __builtin_ia32_pause();
#elif ARM64
    __asm__ volatile("yield");
#endif
}

static void wait_for_change(signal_counter *counter, unsigned old)
{
    for (int i = 1; i < MAX_SPINS; i++) {
        if (atomic_load_explicit(&counter->value, memory_order_acquire) != old)
            return;
        if (i % SPINS_PER_YIELD)
            spin();
        else
            sched_yield();
    }
    pthread_mutex_lock(&counter->mutex);
    atomic_fetch_add(&counter->n_asleep, 1);
    while (atomic_load(&counter->value) == old)
        pthread_cond_wait(&counter->changed, &counter->mutex);
    atomic_fetch_sub(&counter->n_asleep, 1);
    pthread_mutex_unlock(&counter->mutex);
}

/* A thread increments n_asleep before it reads the value; here n_asleep is read after the value has
 * changed. So no sleeping thread is missed. */
static void increment(signal_counter *counter)
{
    atomic_fetch_add(&counter->value, 1);
    if (atomic_load(&counter->n_asleep)) {
        pthread_mutex_lock(&counter->mutex);
        pthread_cond_broadcast(&counter->changed);
        pthread_mutex_unlock(&counter->mutex);
    }
}

void wait_for_team(void)
{
    team *t = current_team;
    if (!t)
        return;
    const unsigned passed = atomic_load(&t->barriers.value);
    if (atomic_fetch_add(&t->n_waiting, 1) + 1 < t->n_members) {
        wait_for_change(&t->barriers, passed);
        return;
    }
    atomic_store(&t->n_waiting, 0);
    increment(&t->barriers);
}

static void *run_worker(void *of)
{
    team *t = current_team = of;
    const int index = 1 + atomic_fetch_add(&t->n_named, 1);
    for (unsigned begun = 0;; begun++) {
        wait_for_change(&t->begun, begun);
        t->function((team_member){index, t->n_members}, t->argument);
        wait_for_team();
    }
    return NULL;
}

/* ---- idle teams ----------------------------------------------------------------------------- */

static void lock_idle(void) { pthread_mutex_lock(&idle_mutex); }

static void unlock_idle(void) { pthread_mutex_unlock(&idle_mutex); }

/* A forked process has none of the threads: it leaves their teams behind, and creates others. */
static void forget_teams(void)
{
    idle_teams = current_team = NULL;
    unlock_idle();
}

static void watch_forks(void) { pthread_atfork(lock_idle, unlock_idle, forget_teams); }

static void init_counter(signal_counter *counter)
{
    pthread_mutex_init(&counter->mutex, NULL);
    pthread_cond_init(&counter->changed, NULL);
}

/* Create a thread that handles no signals but those of its own accesses and operations, which would
 * end the program if they were blocked; returns 0 if the system provides none. */
static int create_worker(team *t)
{
    static const int own[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL};
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        sigdelset(&blocked, own[i]);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    pthread_t thread;
    const int failed = pthread_create(&thread, &attributes, run_worker, t);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return !failed;
}

static team *create_team(int n_threads)
{
    void *memory = NULL;
    if (posix_memalign(&memory, CACHE_LINE, sizeof(team)))
        return NULL;
    team *t = memory;
    *t = (team){.n_wanted = n_threads, .n_members = 1};
    init_counter(&t->begun);
    init_counter(&t->barriers);
    while (t->n_members < n_threads && create_worker(t))
        t->n_members++;
    return t;
}

static team *take_team(int n_threads)
{
    pthread_once(&once, watch_forks);
    lock_idle();
    team **at = &idle_teams;
    while (*at && (*at)->n_wanted != n_threads)
        at = &(*at)->next_idle;
    team *t = *at;
    if (t)
        *at = t->next_idle;
    unlock_idle();
    return t ? t : create_team(n_threads);
}

static void give_back(team *t)
{
    lock_idle();
    t->next_idle = idle_teams;
    idle_teams = t;
    unlock_idle();
}

void run_team(int n_threads, team_function *function, void *argument)
{
    team *t = n_threads > 1 ? take_team(n_threads) : NULL;
    if (!t) {
        function((team_member){0, 1}, argument);
        return;
    }
    t->function = function;
    t->argument = argument;
    current_team = t;
    increment(&t->begun);
    function((team_member){0, t->n_members}, argument);
    wait_for_team();
    current_team = NULL;
    give_back(t);
}

#endif
