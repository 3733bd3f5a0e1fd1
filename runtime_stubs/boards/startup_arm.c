/* Reset and faults of an Arm Cortex-M (v6-M to v8.1-M). No interrupt is enabled; every exception, faults
   included, ends the program with exit code 99. */
#include <stdint.h>

#include "isobit/host_io.h"

/* Addresses given by arm.ld. */
extern uint32_t isobit_stack_top[];
extern uint32_t isobit_data_start[];
extern uint32_t isobit_data_end[];
extern const uint32_t isobit_data_image[];
extern uint32_t isobit_bss_start[];
extern uint32_t isobit_bss_end[];

int main(void);
void Reset_Handler(void);
void Fault_Handler(void);

/* System control block registers, at the same address in every M profile. */
#define SCB_CCR (*(volatile uint32_t *)0xE000ED14u)
#define SCB_CCR_UNALIGN_TRP (1u << 3)
#define SCB_CPACR (*(volatile uint32_t *)0xE000ED88u)
#define SCB_CPACR_CP10_CP11_FULL (0xFu << 20)

/* Out of line, so that nothing the compiler vectorises here moves above the enabling of the vector unit. */
__attribute__((noinline)) static void run_program(void) {
  const uint32_t *image = isobit_data_image;
  for (uint32_t *word = isobit_data_start; word < isobit_data_end; ++word) *word = *image++;
  for (uint32_t *word = isobit_bss_start; word < isobit_bss_end; ++word) *word = 0;
  isobit_exit(main());
}

void Reset_Handler(void) {
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
  SCB_CPACR |= SCB_CPACR_CP10_CP11_FULL; /* one switch for the FPU and for Helium */
#endif
#ifndef __ARM_FEATURE_UNALIGNED
  SCB_CCR |= SCB_CCR_UNALIGN_TRP; /* v6-M code simulated on a later core must fault where a v6-M core would */
#endif
  __asm volatile("dsb\n\tisb" ::: "memory");
  run_program();
}

/* Starts on a fresh stack, because an overflow of the old one is itself a fault. */
__attribute__((naked)) void Fault_Handler(void) {
  __asm volatile(
      ".syntax unified\n\t"
      "ldr r0, =isobit_stack_top\n\t"
      "mov sp, r0\n\t"
      "movs r0, #99\n\t"
      "bl isobit_exit\n\t"
      ".ltorg");
}

/* What the core loads at reset: the initial stack pointer, then exceptions 1 to 15. */
struct vector_table {
  uint32_t *initial_stack;
  void (*exceptions[15])(void);
};

extern const struct vector_table isobit_vectors;

__attribute__((section(".vectors"), used)) const struct vector_table isobit_vectors = {
    isobit_stack_top,
    {
        Reset_Handler, Fault_Handler, Fault_Handler, /* reset, NMI, HardFault */
        Fault_Handler, Fault_Handler, Fault_Handler, /* MemManage, BusFault, UsageFault */
        Fault_Handler, 0, 0, 0,                      /* SecureFault (v8-M), reserved */
        Fault_Handler, Fault_Handler, 0,             /* SVCall, DebugMonitor, reserved */
        Fault_Handler, Fault_Handler,                /* PendSV, SysTick */
    },
};
