# The types that the textbook loops are compiled for.
ctypedef fused element:
    float
    double
    float complex
    double complex
    long long
    unsigned long long

ctypedef (Py_ssize_t, Py_ssize_t, Py_ssize_t) triple
ctypedef (Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t,
          Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t) tens
