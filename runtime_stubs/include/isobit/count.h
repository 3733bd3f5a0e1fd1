/* Marks the part of a program whose executed instructions are counted.

   Counted are the instructions between the return of isobit_count_begin and the one that branches to
   isobit_count_end, neither call included. A program may pass through several such regions; they add up. A
   begin inside an open region, and an end outside one, do nothing. On a host, both are empty. */
#ifndef ISOBIT_COUNT_H
#define ISOBIT_COUNT_H

#ifdef ISOBIT_BOARD
void isobit_count_begin(void);
void isobit_count_end(void);
#else
static inline void isobit_count_begin(void) {}
static inline void isobit_count_end(void) {}
#endif

#endif
