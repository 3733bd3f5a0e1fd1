/* The two addresses that the simulator's counter watches (qemu/count_plugin.c). Each function is one
   instruction at every optimisation level, hence naked, and stays out of line. */
#include "isobit/count.h"

#if defined(__arm__)
#define RETURN "bx lr"
#else
#error "count.c: give this architecture's return instruction"
#endif

__attribute__((naked, noinline)) void isobit_count_begin(void) { __asm volatile(RETURN); }

__attribute__((naked, noinline)) void isobit_count_end(void) { __asm volatile(RETURN); }
