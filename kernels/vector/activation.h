/* Activations of abi.h over vectors. */
#ifndef COPPICE_VECTOR_ACTIVATION_H
#define COPPICE_VECTOR_ACTIVATION_H

/* e^a. With n the integer nearest to a / ln 2, e^a = 2^n * e^(a - n ln 2): ln 2 is subtracted in two parts, the first
 * of which leaves no rounding error (Cody and Waite, 1980), and the rest, within 0.35 of zero, goes through its Taylor
 * polynomial of degree 7. Relative error below 2e-7 where the result is normal. */
static inline vector exponential(vector a) {
    a = minimum(broadcast(104.0f), maximum(broadcast(-104.0f), a));
    const vector n = nearest_integer(multiply(a, broadcast(1.44269504f)));
    const vector r = multiply_add(n, broadcast(2.12194440e-4f), multiply_add(n, broadcast(-0.693359375f), a));
    vector sum = broadcast(1.0f / 5040);
    sum = multiply_add(sum, r, broadcast(1.0f / 720));
    sum = multiply_add(sum, r, broadcast(1.0f / 120));
    sum = multiply_add(sum, r, broadcast(1.0f / 24));
    sum = multiply_add(sum, r, broadcast(1.0f / 6));
    sum = multiply_add(sum, r, broadcast(0.5f));
    sum = multiply_add(sum, r, broadcast(1.0f));
    sum = multiply_add(sum, r, broadcast(1.0f));
    return scale(sum, n);
}

/* z * erfc(-z / sqrt(2)) / 2, with erfc(t) of t >= 0 after Abramowitz and Stegun (1964), 7.1.26: 1.5e-7 off at most. */
static inline vector gelu(vector z) {
    const vector t = multiply(absolute(z), broadcast(0.70710678f));
    const vector k = divide(broadcast(1.0f), multiply_add(t, broadcast(0.3275911f), broadcast(1.0f)));
    vector sum = broadcast(1.061405429f);
    sum = multiply_add(sum, k, broadcast(-1.453152027f));
    sum = multiply_add(sum, k, broadcast(1.421413741f));
    sum = multiply_add(sum, k, broadcast(-0.284496736f));
    sum = multiply_add(sum, k, broadcast(0.254829592f));
    const vector decay = exponential(multiply(multiply(t, broadcast(-1.0f)), t));
    const vector rest = multiply(multiply(sum, k), decay);
    const vector half = multiply(z, broadcast(0.5f));
    return where_negative(z, multiply(half, rest),
                          multiply(half, add(broadcast(2.0f), multiply(rest, broadcast(-1.0f)))));
}

static inline vector activate(int activation, vector z) {
    const vector one = broadcast(1.0f);
    switch (activation) {
    case COPPICE_HARDSWISH: {
        const vector gate = multiply_add(z, broadcast(1.0f / 6), broadcast(0.5f));
        return multiply(z, minimum(one, maximum(zero(), gate)));
    }
    case COPPICE_SIGMOID:
        return divide(one, add(one, exponential(multiply(z, broadcast(-1.0f)))));
    case COPPICE_SILU:
        return divide(z, add(one, exponential(multiply(z, broadcast(-1.0f)))));
    case COPPICE_GELU:
        return gelu(z);
    default:
        return z;
    }
}

/* clamp(activation(z)); in this order the bounds let NaN through. */
static inline vector finished(int activation, vector lower, vector upper, vector z) {
    if (activation != COPPICE_CLAMP_ONLY)
        z = activate(activation, z);
    return minimum(upper, maximum(lower, z));
}

#endif
