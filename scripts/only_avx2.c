/* Preloaded into a process, it has the CPUID instruction report no vectors wider than AVX2, nor what came with them.

   Linux can trap CPUID for a process (arch_prctl ARCH_SET_CPUID), where the processor has "cpuid_fault". Libraries that
   choose their code by CPUID (torch, MKL, oneDNN, numpy, OpenSSL, XLA) then choose as on a processor with AVX2 alone. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

/* Leaf 7: AVX-512 in all its parts, VAES, VPCLMULQDQ, GFNI and AMX; of subleaf 1, AVX-VNNI and its like. */
static const unsigned EBX = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const unsigned ECX = BIT(1) | BIT(6) | BIT(8) | BIT(9) | BIT(10) | BIT(11) | BIT(12) | BIT(14);
static const unsigned EDX = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
static const unsigned EAX_1 = BIT(4) | BIT(5) | BIT(21) | BIT(23);
static const unsigned EDX_1 = BIT(4) | BIT(5) | BIT(10) | BIT(19);

static int trap_cpuid(int trap) { return (int)syscall(SYS_arch_prctl, ARCH_SET_CPUID, !trap); }

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned leaf = registers[REG_RAX], subleaf = registers[REG_RCX], a, b, c, d;
    (void)info;
    if (memcmp((void *)registers[REG_RIP], "\x0f\xa2", 2) != 0) { /* a fault of the program's own */
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    trap_cpuid(0);
    __cpuid_count(leaf, subleaf, a, b, c, d);
    trap_cpuid(1);
    if (leaf == 7 && subleaf == 0) b &= ~EBX, c &= ~ECX, d &= ~EDX;
    if (leaf == 7 && subleaf == 1) a &= ~EAX_1, d &= ~EDX_1;
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (sigaction(SIGSEGV, &action, NULL) != 0 || trap_cpuid(1) != 0) {
        fputs("only-avx2: this processor or this kernel cannot trap CPUID\n", stderr);
        _exit(69);
    }
}
