-- Health of a FineTuneJob for Argo CD: its Ready and Stalled conditions, once they are about the spec that was synced.
-- A run that failed its gate is Degraded only where no earlier model answers.
local health = { status = "Progressing", message = "Waiting for the operator" }
local status = obj.status
if status == nil or status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end
for _, condition in ipairs(status.conditions) do
  if condition.type == "Stalled" and condition.status == "True" then
    return { status = "Degraded", message = condition.message }
  elseif condition.type == "Ready" then
    health.message = condition.message
    if condition.status == "True" then
      health.status = "Healthy"
    elseif condition.reason == "Suspended" or condition.reason == "AwaitingApproval" then
      health.status = "Suspended"
    end
  end
end
return health
