/* A small FMU for the tests, FMI 2 or 3 (FMI3), of FMPy's own headers: x' = -a x + u by one Euler step a step.
   Variables: 0 u (input), 1 x (output), 2 seen = u (output), 3 time of the last step's begin (output), 4 a (parameter).
   HOLDS_BACK: its reset leaves x. FORGETS: a state that is set leaves x. ENDS: doStep fails from 1 s on. */
#include <stdlib.h>
#include <string.h>
#ifdef FMI3
#include "fmi3Functions.h"
#define OK fmi3OK
#define STATUS fmi3Status
#define INSTANCE fmi3Instance
#define REFERENCE fmi3ValueReference
#define NUMBER fmi3Float64
#define STATE fmi3FMUState
#define NAME(name) fmi3##name
#else
#include "fmi2Functions.h"
#define OK fmi2OK
#define STATUS fmi2Status
#define INSTANCE fmi2Component
#define REFERENCE fmi2ValueReference
#define NUMBER fmi2Real
#define STATE fmi2FMUstate
#define NAME(name) fmi2##name
#endif

typedef struct { double values[5]; } Unit;

static void begin(Unit *unit) {
    double x = unit->values[1];
    memset(unit, 0, sizeof(Unit));
    unit->values[4] = 0.5;
    unit->values[1] = 1.0;
#ifdef HOLDS_BACK
    if (x != 0.0) unit->values[1] = x;
#endif
    (void)x;
}

static STATUS get(INSTANCE i, const REFERENCE r[], size_t n, NUMBER v[]) {
    Unit *unit = i;
    unit->values[2] = unit->values[0];
    for (size_t k = 0; k < n; k++) v[k] = unit->values[r[k]];
    return OK;
}

static STATUS set(INSTANCE i, const REFERENCE r[], size_t n, const NUMBER v[]) {
    for (size_t k = 0; k < n; k++) ((Unit *)i)->values[r[k]] = v[k];
    return OK;
}

static STATUS advance(INSTANCE i, double time, double h) {
    double *v = ((Unit *)i)->values;
#ifdef ENDS
    if (time > 0.99) return OK + 3;
#endif
    v[1] += h * (v[0] - v[4] * v[1]);
    v[3] = time;
    return OK;
}

STATUS NAME(Terminate)(INSTANCE i) { (void)i; return OK; }
STATUS NAME(Reset)(INSTANCE i) { begin(i); return OK; }
STATUS NAME(ExitInitializationMode)(INSTANCE i) { (void)i; return OK; }
void NAME(FreeInstance)(INSTANCE i) { free(i); }

static STATUS take(INSTANCE i, STATE *s) {
    if (*s == NULL) *s = malloc(sizeof(Unit));
    memcpy(*s, i, sizeof(Unit));
    return OK;
}
static STATUS put(INSTANCE i, STATE s) {
#ifdef FORGETS
    ((Unit *)s)->values[1] = ((Unit *)i)->values[1];
#endif
    memcpy(i, s, sizeof(Unit));
    return OK;
}
static STATUS drop(STATE *s) { free(*s); *s = NULL; return OK; }

#ifdef FMI3
fmi3Instance fmi3InstantiateCoSimulation(fmi3String n, fmi3String t, fmi3String p, fmi3Boolean v, fmi3Boolean l, fmi3Boolean e,
    fmi3Boolean a, const fmi3ValueReference q[], size_t m, fmi3InstanceEnvironment w, fmi3LogMessageCallback g,
    fmi3IntermediateUpdateCallback f) {
    (void)n; (void)t; (void)p; (void)v; (void)l; (void)e; (void)a; (void)q; (void)m; (void)w; (void)g; (void)f;
    Unit *unit = calloc(1, sizeof(Unit)); begin(unit); return unit;
}
fmi3Status fmi3EnterInitializationMode(fmi3Instance i, fmi3Boolean d, fmi3Float64 t, fmi3Float64 s, fmi3Boolean e, fmi3Float64 f) {
    (void)i; (void)d; (void)t; (void)s; (void)e; (void)f; return OK;
}
fmi3Status fmi3GetFloat64(fmi3Instance i, const fmi3ValueReference r[], size_t n, fmi3Float64 v[], size_t m) { (void)m; return get(i, r, n, v); }
fmi3Status fmi3SetFloat64(fmi3Instance i, const fmi3ValueReference r[], size_t n, const fmi3Float64 v[], size_t m) { (void)m; return set(i, r, n, v); }
fmi3Status fmi3DoStep(fmi3Instance i, fmi3Float64 t, fmi3Float64 h, fmi3Boolean n, fmi3Boolean *e, fmi3Boolean *d, fmi3Boolean *y, fmi3Float64 *l) {
    (void)n; *e = 0; *d = ((Unit *)i)->values[1] > 100.0; *y = 0; *l = t + h; return advance(i, t, h);
}
fmi3Status fmi3GetFMUState(fmi3Instance i, fmi3FMUState *s) { return take(i, s); }
fmi3Status fmi3SetFMUState(fmi3Instance i, fmi3FMUState s) { return put(i, s); }
fmi3Status fmi3FreeFMUState(fmi3Instance i, fmi3FMUState *s) { (void)i; return drop(s); }
#else
fmi2Component fmi2Instantiate(fmi2String n, fmi2Type t, fmi2String g, fmi2String r, const fmi2CallbackFunctions *f, fmi2Boolean v, fmi2Boolean l) {
    (void)n; (void)t; (void)g; (void)r; (void)f; (void)v; (void)l;
    Unit *unit = calloc(1, sizeof(Unit)); begin(unit); return unit;
}
fmi2Status fmi2SetupExperiment(fmi2Component i, fmi2Boolean d, fmi2Real t, fmi2Real s, fmi2Boolean e, fmi2Real f) {
    (void)i; (void)d; (void)t; (void)s; (void)e; (void)f; return OK;
}
fmi2Status fmi2EnterInitializationMode(fmi2Component i) { (void)i; return OK; }
fmi2Status fmi2GetReal(fmi2Component i, const fmi2ValueReference r[], size_t n, fmi2Real v[]) { return get(i, r, n, v); }
fmi2Status fmi2SetReal(fmi2Component i, const fmi2ValueReference r[], size_t n, const fmi2Real v[]) { return set(i, r, n, v); }
fmi2Status fmi2DoStep(fmi2Component i, fmi2Real t, fmi2Real h, fmi2Boolean n) { (void)n; return advance(i, t, h); }
fmi2Status fmi2GetFMUstate(fmi2Component i, fmi2FMUstate *s) { return take(i, s); }
fmi2Status fmi2SetFMUstate(fmi2Component i, fmi2FMUstate s) { return put(i, s); }
fmi2Status fmi2FreeFMUstate(fmi2Component i, fmi2FMUstate *s) { (void)i; return drop(s); }
#endif
