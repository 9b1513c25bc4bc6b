//go:build tools

// Package kueue pins Kueue, whose modules and those of Kubernetes' own cannot be in one go.mod.
package kueue

import _ "sigs.k8s.io/kueue/cmd/kueue"
